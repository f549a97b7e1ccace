"""Tools with canned results, in place of MCP servers."""

from collections.abc import Collection

from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal, ToolResult, ToolSpec, text_block
from gateway.evaluation.cases import CannedTool, Case, Suite, includes
from gateway.ports.tools import HostExchange, ItemKind, ServerStatus, SignIn, Toolbox, ToolCallRequest
from gateway_runtime.json_schema.validation import SchemaNotCheckable, compile_schema_off_loop, find_error_off_loop

_SERVER = "evaluation"
_NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}}
_SUBJECTS = ("invoice", "customer", "shipment", "ticket", "employee", "contract", "asset", "campaign", "vendor", "room")
_ACTIONS = ("get", "list", "create", "update", "archive", "export", "approve", "assign", "tag", "share")


class CannedToolbox(Toolbox):
    """The tools of one case."""

    def __init__(self, suite: Suite, case: Case) -> None:
        names = suite.tools if case.tools is None else case.tools
        own = [_build_spec(name, suite.tools[name]) for name in names]
        fillers = [_build_filler(number) for number in range(case.filler_tools)]
        self._specs = (*fillers, *own) if case.fillers_first else (*own, *fillers)
        self._tools = suite.tools
        self._replaced = case.tool_results

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        return self._specs

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        return next((spec for spec in self._specs if spec.name == name), None)

    async def call_tool(self, request: ToolCallRequest) -> ToolResult:
        """Return the canned result.

        It is an error if the arguments do not match the schema.
        """
        problem = await _find_problem(request.spec.input_schema, request.arguments)
        if problem is not None:
            return ToolResult("error", [text_block(f"Invalid arguments: {problem}")])
        name = request.spec.name
        if name in self._replaced:
            return ToolResult("ok", [text_block(self._replaced[name])])
        tool = self._tools.get(name)
        if tool is None:
            return ToolResult("ok", [text_block("Done.")])
        for result in tool.results:
            if includes(request.arguments, result.arguments):
                return ToolResult("error" if result.outcome == "error" else "ok", [text_block(result.text)])
        return ToolResult("ok", [text_block(tool.result)])

    def get_instructions(self, servers: Collection[str]) -> str:
        del servers
        return ""

    def list_instructions(self) -> list[tuple[str, str]]:
        return []

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        del kind, principal
        return []

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        raise NotFound

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        raise NotFound

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        raise NotFound

    def list_server_statuses(self) -> list[ServerStatus]:
        return []

    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        return frozenset()

    def recheck_server(self, server: str) -> None:
        """Do nothing: canned tools never change."""

    @property
    def sign_in(self) -> SignIn:
        raise NotFound

    def get_forwarded_headers(self) -> frozenset[str]:
        return frozenset()


async def _find_problem(schema: JsonObject, arguments: JsonObject) -> str | None:
    try:
        error = await find_error_off_loop(await compile_schema_off_loop(schema), arguments)
    except SchemaNotCheckable:
        return None
    return None if error is None else error.message[:300]


def _build_spec(name: str, tool: CannedTool) -> ToolSpec:
    return ToolSpec(name, _SERVER, name, tool.description, tool.parameters or _NO_PARAMETERS, read_only=tool.read_only)


def _build_filler(number: int) -> ToolSpec:
    """Build one of many tools that no case needs; their names differ."""
    action, subject = _ACTIONS[number % len(_ACTIONS)], _SUBJECTS[number // len(_ACTIONS) % len(_SUBJECTS)]
    system = number // (len(_ACTIONS) * len(_SUBJECTS)) + 1
    schema: JsonObject = {
        "type": "object",
        "properties": {f"{subject}_id": {"type": "string", "description": f"Id of the {subject}."}},
        "required": [f"{subject}_id"],
    }
    description = f"{action.capitalize()} {subject} records in system {system}."
    return ToolSpec(f"system{system}_{action}_{subject}", _SERVER, f"{action}_{subject}", description, schema)
