"""The tools that a turn's model sees.

If they do not all fit into its request, `find_tools` searches the others.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from gateway.agent.batch_tool import BATCH, build_batch_spec
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import (
    JsonObject,
    Principal,
    RequestedCode,
    ToolChoice,
    ToolResult,
    ToolSpec,
    TurnRequest,
    text_block,
)
from gateway.domain.toolsets import bind_toolset
from gateway.ports.code import ProgramInterface
from gateway.ports.model import ModelInfo
from gateway.ports.tools import Toolbox
from gateway_runtime.json_schema.rules import SchemaTooLarge, measure_value

FIND_TOOLS = "find_tools"
RUN_PYTHON = "run_python"
MAX_TOOLS = 128
_OWN_TOOLS = (FIND_TOOLS, RUN_PYTHON, BATCH)
_MAX_SHOWN_NAME = 80
_MAX_RESULTS = 10
_MAX_SEARCHED_CHARS = 1_000
"""Of each description."""
_CHARS_PER_TOKEN = 4
_RESERVED_SHARE = 0.25
_HELPER_TOOLS = 2
"""`find_tools` and `batch`, which count in a model's request, too."""
_MAX_MISSING = 10
_MAX_MISSING_LENGTH = 100
_MAX_CLIENT_NODES = 50_000
"""Values in the schemas of all client tools of a request."""
_WORD = re.compile(r"[a-z0-9]+")
_NAMESAKE = "The gateway's tool {!r} was left out: the request has a tool of that name."
_NO_ROOM = "The gateway's tools were left out: the {} tools of the request fill the {} that a model takes."


class ToolSelection(msgspec.Struct, frozen=True):
    """`tools` are in the model's request from the start.

    `find_tools` searches the `hidden` ones. `choice` is the request's choice among these. Programs may call the
    `functions` by their `interface`; without one, there are no programs.
    """

    tools: tuple[ToolSpec, ...]
    hidden: tuple[ToolSpec, ...] = ()
    choice: ToolChoice | None = None
    functions: tuple[ToolSpec, ...] = ()
    interface: ProgramInterface | None = None


AddPrograms = Callable[[ToolSelection, RequestedCode], ToolSelection]
"""Adds `run_python` to a selection, as a mode says."""


class ToolSelector:
    """Chooses the tools of a turn.

    `max_tokens` bounds their definitions; `batches` adds the `batch` tool.
    """

    def __init__(
        self, toolbox: Toolbox, *, max_tokens: int, batches: bool, add_programs: AddPrograms | None = None
    ) -> None:
        self._toolbox = toolbox
        self._max_tokens = max_tokens
        self._batches = batches
        self._add_programs = add_programs

    def select(
        self, request: TurnRequest, principal: Principal, model: ModelInfo
    ) -> tuple[ToolSelection, tuple[str, ...]]:
        """Return the turn's tools, and warnings about missing ones.

        A tool is missing if no server has it. A client-side tool hides a server's tool of the same name.
        """
        principal = bind_toolset(principal, request.toolset)
        specs, warnings = self._list_requested(request, principal)
        specs, choice = apply_choice(specs, request.tool_choice)
        required_names = [str(choice["function"]["name"])] if isinstance(choice, dict) else []
        selection = select_tools(specs, always=required_names, max_tokens=self._max_tokens)
        if len(selection.tools) + len(selection.hidden) < len(specs):
            warnings = (*warnings, _NO_ROOM.format(len(request.client_tools), MAX_TOOLS))
        else:
            selection = self._with_batch(selection, model)
        selection = msgspec.structs.replace(selection, choice=choice)
        if self._add_programs is not None:
            selection = self._add_programs(selection, choose_code_mode(request, principal))
        return _leave_out_namesakes(selection, warnings)

    def check_choice(self, request: TurnRequest, principal: Principal) -> None:
        """Check that a tool which must be called is on offer.

        Raises:
            InvalidRequest: it is not, so that no answer could satisfy the choice.
        """
        choice = request.tool_choice
        if not isinstance(choice, dict) or choice["type"] != "function":
            return
        specs, _ = self._list_requested(request, principal)
        name = str(choice["function"]["name"])
        if name not in _OWN_TOOLS and not any(name in (spec.name, *spec.aliases) for spec in specs):
            message = f"tool_choice: the tool {name[:_MAX_SHOWN_NAME]!r} is not among the tools of this request."
            raise InvalidRequest(message, param="tool_choice")

    async def connect_user(self, principal: Principal) -> None:
        """See `Toolbox.connect_user`."""
        await self._toolbox.connect_user(principal)

    def check_toolset(self, principal: Principal) -> tuple[str, ...]:
        """Return a warning if tools of the caller's toolset are not available.

        Raises:
            ToolsetNotFound: there is no such toolset.
        """
        missing = self._toolbox.list_missing_tools(principal)
        return (_describe_missing(principal.toolset, missing),) if missing else ()

    def _list_requested(
        self, request: TurnRequest, principal: Principal
    ) -> tuple[tuple[ToolSpec, ...], tuple[str, ...]]:
        if request.tools == ():
            return request.client_tools, ()
        client_names = {spec.name for spec in request.client_tools}
        specs = tuple(spec for spec in self._toolbox.list_specs(principal) if spec.for_model)
        if client_names or request.approve or not principal.can_use_all_tools:
            specs = tuple(
                msgspec.structs.replace(spec, approval="always")
                if any(name in request.approve for name in (spec.name, spec.original_name, *spec.former_names))
                else spec
                for spec in specs
                if spec.name not in client_names and principal.can_use_tool(spec)
            )
        if request.tools is None:
            return specs + request.client_tools, ()
        known_names = {name for spec in specs for name in (spec.name, *spec.aliases)}
        missing_names = sorted(set(request.tools) - known_names - client_names)
        warnings = tuple(
            f"The tool {name!r} is not available: no connected server offers it, or you may not use it."
            for name in missing_names
        )
        requested = set(request.tools)
        return tuple(
            spec for spec in specs if not requested.isdisjoint((spec.name, *spec.aliases))
        ) + request.client_tools, warnings

    def _with_batch(self, selection: ToolSelection, model: ModelInfo) -> ToolSelection:
        """Add `batch` if the administrator enabled it and the model needs it.

        Models that make one call per step need it.
        """
        if not self._batches or model.parallel_calls or (spec := build_batch_spec(selection.tools)) is None:
            return selection
        return msgspec.structs.replace(selection, tools=(*selection.tools, spec))


def _leave_out_namesakes(selection: ToolSelection, warnings: tuple[str, ...]) -> tuple[ToolSelection, tuple[str, ...]]:
    """Leave the gateway's helpers out whose names the client's tools have."""
    client_names = {spec.name for spec in selection.tools if spec.client}
    namesakes = [spec.name for spec in selection.tools if not spec.client and spec.name in client_names]
    if not namesakes:
        return selection, warnings
    tools = tuple(spec for spec in selection.tools if spec.client or spec.name not in client_names)
    notes = (_NAMESAKE.format(name) for name in namesakes)
    return msgspec.structs.replace(selection, tools=tools), (*warnings, *notes)


def choose_code_mode(request: TurnRequest, principal: Principal) -> RequestedCode:
    """Return the mode of a request, else that of its key."""
    return principal.code or request.code if request.code in ("key", None) else request.code


def _describe_missing(toolset: str | None, missing: tuple[str, ...]) -> str:
    names = ", ".join(name[:_MAX_MISSING_LENGTH] for name in missing[:_MAX_MISSING])
    more = len(missing) - _MAX_MISSING
    return f"The toolset {toolset!r} names tools that are not available: {names}{f' and {more} more' * (more > 0)}."


def check_client_tools(tools: Iterable[ToolSpec]) -> None:
    """Check the size of the schemas of client tools.

    Raises:
        InvalidRequest: a schema is too large or nested too deeply, or all of them together are too large.
    """
    remaining = _MAX_CLIENT_NODES
    for tool in tools:
        try:
            remaining -= measure_value(tool.input_schema).nodes
        except SchemaTooLarge as error:
            raise InvalidRequest(f"tools: the schema of {tool.name!r} is refused: {error}.", param="tools") from None
        if remaining < 0:
            message = f"tools: the schemas have more than {_MAX_CLIENT_NODES:,} values together."
            raise InvalidRequest(message, param="tools")


def apply_choice(
    specs: tuple[ToolSpec, ...], choice: ToolChoice | None
) -> tuple[tuple[ToolSpec, ...], ToolChoice | None]:
    """Return the tools that a choice leaves, and the choice among them.

    Where a client with tools of its own requires a call, it means one of these: the gateway's tools are left out, whose
    calls would satisfy the model's server and not the client.
    """
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        names: set[str] = set(choice["names"])
        specs = tuple(spec for spec in specs if not names.isdisjoint((spec.name, *spec.aliases)))
        choice = str(choice["mode"])
    if choice == "required" and any(spec.client for spec in specs):
        specs = tuple(spec for spec in specs if spec.client)
    return specs, choice


def select_tools(specs: tuple[ToolSpec, ...], *, always: Iterable[str], max_tokens: int) -> ToolSelection:
    """Select all tools if they fit, else some and `find_tools`.

    The first tools are selected, with room for those that `find_tools` loads. `always` names tools that must be
    selected. The order stays, because the prompt cache depends on it. The client's own tools are always selected; where
    they leave no room, the gateway's are left out.
    """
    if len(specs) <= MAX_TOOLS and sum(map(_estimate_tokens, specs)) <= max_tokens:
        return ToolSelection(specs)
    required_names = set(always)
    room = MAX_TOOLS - sum(spec.client for spec in specs) - _HELPER_TOOLS
    if room <= 0:
        return ToolSelection(tuple(spec for spec in specs if spec.client))
    tokens, number = max_tokens * (1 - _RESERVED_SHARE), room * (1 - _RESERVED_SHARE)
    selected_specs: list[ToolSpec] = []
    for spec in specs:
        tokens -= _estimate_tokens(spec)
        number -= not spec.client
        if spec.client or spec.name in required_names or (tokens > 0 and number >= 0):
            selected_specs.append(spec)
    selected_names = {spec.name for spec in selected_specs}
    hidden = tuple(spec for spec in specs if spec.name not in selected_names)
    if not hidden:
        return ToolSelection(specs)
    return ToolSelection((*selected_specs, build_search_spec(hidden)), hidden)


def search_tools(query: str, hidden: tuple[ToolSpec, ...], interface: ProgramInterface | None = None) -> ToolResult:
    """Find the hidden tools that match a query best.

    With an `interface`, the result has their declarations, for programs.

    The score counts the query's words in names and descriptions; rare words and words in names count more.
    """
    words = set(_split_words(query))
    documents = [
        (
            spec,
            Counter(_split_words(f"{spec.name} {spec.title or ''}")),
            set(_split_words(spec.description[:_MAX_SEARCHED_CHARS])),
        )
        for spec in hidden
    ]
    rarity = {
        word: math.log(1 + len(documents) / (1 + sum(word in name or word in text for _, name, text in documents)))
        for word in words
    }
    scores = [
        (sum(rarity[word] * (3 * (word in name) + (word in text)) for word in words), -position, spec)
        for position, (spec, name, text) in enumerate(documents)
    ]
    best = sorted((score for score in scores if score[0] > 0), key=lambda s: s[:2], reverse=True)[:_MAX_RESULTS]
    if not best:
        note = "No tool matches these words. Try other ones: what the tool does, or the system that it works on."
        return ToolResult("ok", [text_block(note)], {"loaded": []})
    stubs = ""
    if interface is not None:
        stubs = f"Programs can call these functions:\n\n{interface.join_stubs({spec.name for _, _, spec in best})}"
        if interface.replaces_tools:
            return ToolResult("ok", [text_block(stubs)], {"loaded": []})
    lines = [f"{spec.name}: {' '.join(spec.description.split())[:200]}" for _, _, spec in best]
    summary = "You can call these tools now:\n" + "\n".join(lines)
    content = [text_block(text) for text in (summary, stubs) if text]
    return ToolResult("ok", content, {"loaded": [spec.name for _, _, spec in best]})


def _split_words(text: str) -> list[str]:
    """Split names of any style into lower-case words, without plural endings."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()
    return [word.removesuffix("s") if len(word) > 3 else word for word in _WORD.findall(split)]


def _estimate_tokens(spec: ToolSpec) -> int:
    return spec.prompt_chars // _CHARS_PER_TOKEN


def build_search_spec(hidden: tuple[ToolSpec, ...]) -> ToolSpec:
    """Build `find_tools` for the hidden tools."""
    servers = ", ".join(dict.fromkeys(spec.server for spec in hidden))
    schema: JsonObject = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What the tool should do, in a few words."}},
        "required": ["query"],
        "additionalProperties": False,
    }
    description = (
        f"Find more tools: {len(hidden)} others are available, of {servers}. You can call the ones that it finds. "
        "Use it whenever the tools that you see cannot do what is needed."
    )
    return ToolSpec(
        FIND_TOOLS,
        "gateway",
        FIND_TOOLS,
        description[:1_000],
        schema,
        read_only=True,
        destructive=False,
        idempotent=True,
        open_world=False,
        helper=True,
    )
