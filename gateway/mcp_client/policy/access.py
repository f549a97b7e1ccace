"""The deny list of all callers, and each caller's allow lists."""

from fnmatch import fnmatchcase

from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, PendingInput, Principal, ToolResult, ToolSpec, text_block
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.mcp_client.resources import find_resource_server
from gateway.ports.tools import ItemKind, Toolbox, ToolCallRequest


class ToolDenyList(ToolboxWrapper):
    """Hides and refuses tools that match a glob of `deny`.

    A glob is compared with a tool's exposed name and with `server/tool`. It wins over every allow list.
    """

    def __init__(self, toolbox: Toolbox, deny: tuple[str, ...]) -> None:
        super().__init__(toolbox)
        self._deny = deny
        self._all_specs: tuple[ToolSpec, ...] = ()
        self._allowed_specs: tuple[ToolSpec, ...] = ()

    def list_specs(self) -> tuple[ToolSpec, ...]:
        specs = self._toolbox.list_specs()
        if not self._deny:
            return specs
        if specs is not self._all_specs:
            self._all_specs = specs
            self._allowed_specs = tuple(spec for spec in specs if not self._is_denied(spec))
        return self._allowed_specs

    def find_tool(self, name: str) -> ToolSpec | None:
        spec = self._toolbox.find_tool(name)
        return None if spec is None or self._is_denied(spec) else spec

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if self._is_denied(request.spec):
            return _denied_result(request.spec)
        return await self._toolbox.call_tool(request)

    def _is_denied(self, spec: ToolSpec) -> bool:
        names = (spec.name, f"{spec.server}/{spec.tool}")
        return any(fnmatchcase(name, glob) for glob in self._deny for name in names)


class ToolPermissions(ToolboxWrapper):
    """Refuses calls of tools that are outside the caller's allow lists."""

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if not request.principal.can_use_tool(request.spec):
            return _denied_result(request.spec)
        return await self._toolbox.call_tool(request)


class ServerPermissions(ToolboxWrapper):
    """Limits resources, prompts and completions to the caller's servers.

    Items of other servers are reported as not found.
    """

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        items = await self._toolbox.list_server_items(kind, principal)
        return [item for item in items if principal.can_use_server(item["server"])]

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        if principal.servers is not None:
            server = server or await find_resource_server(self, uri, principal)
            if not principal.can_use_server(server):
                raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        return await self._toolbox.read_resource(uri, principal, server)

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        await self._require_prompt(name, principal)
        return await self._toolbox.get_prompt(name, arguments, principal)

    async def complete_argument(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        if ref.get("type") == "ref/prompt":
            await self._require_prompt(str(ref.get("name")), principal)
        elif principal.servers is not None:
            templates = await self.list_server_items("resource_templates", principal)
            if all(template["uriTemplate"] != ref.get("uri") for template in templates):
                raise NotFound(f"There is no resource template {str(ref.get('uri'))[:200]!r}.", param="ref")
        return await self._toolbox.complete_argument(ref, argument, principal)

    async def _require_prompt(self, name: str, principal: Principal) -> None:
        if principal.servers is None:
            return
        prompts = await self.list_server_items("prompts", principal)
        if all(prompt["name"] != name for prompt in prompts):
            raise NotFound(f"There is no prompt {name[:200]!r}.", param="name")


def _denied_result(spec: ToolSpec) -> ToolResult:
    return ToolResult("denied", [text_block(f"The tool {spec.name!r} is not allowed here.")])
