"""The tools of all connected servers under one set of names, and the way to each."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from mcp.types import Tool

from gateway.common.logging import get_logger
from gateway.config import Settings
from gateway.domain.errors import McpFailed, NotFound, StorageUnavailable
from gateway.domain.messages import InputNeeded, JsonObject, KeptInput, Principal, ToolResult, ToolSpec, text_block
from gateway.mcp_client.builtin_tools import SIGN_IN, list_builtin_tools, make_sign_in_tool
from gateway.mcp_client.caller_identity import TokenSigner
from gateway.mcp_client.connection import Ask, CallFailed, Connection
from gateway.mcp_client.oauth.sign_in import Logins, Tokens, owner_of
from gateway.mcp_client.resources import (
    find_resource_server,
    list_items,
    request_completion,
    request_prompt,
    request_resource,
    supports_listing,
)
from gateway.mcp_client.results import reduce_result
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.tool_names import exposed_name
from gateway.ports.servers import ServerPool
from gateway.ports.tools import CallObserver, Definitions, Grants, Listed, ServerStatus, SignIn, Toolbox

log = get_logger(__name__)

_MOST_TOOLS = 5_000
_MOST_PERSONAL = 200
_RECHECK_SECONDS = 1.0
_DEBOUNCE_SECONDS = 0.05
_PATIENCE, _PERSONAL_PATIENCE = 1.0, 15.0
_MOST_DESCRIPTION = 4_000
_UNKNOWN_RESOURCE_CODES = (-32002, -32602)  # of servers of the legacy and of the modern era


class McpToolbox(ServerPool, Toolbox):
    """See `Toolbox`. A server's tools are on offer while it is up; they come back by themselves."""

    def __init__(
        self,
        servers: list[ServerConfig],
        settings: Settings,
        definitions: Definitions | None = None,
        grants: Grants | None = None,
    ) -> None:
        self._grants = grants
        self.sign_in_service = Logins(grants, settings.public_url, self._config) if grants is not None else None
        self._subscribers: list[Callable[[], Awaitable[None]]] = []
        self._notifying: asyncio.Task[None] | None = None
        self._definitions = definitions
        self._changed: dict[str, set[str]] = {}
        self._unchecked: set[str] = set()
        self._checking: asyncio.Task[None] | None = None
        secret = settings.tools_server_secret
        self._signer = TokenSigner(secret.get_secret_value()) if secret else None
        self._timeout = settings.tool_timeout
        self._most_chars = settings.tool_result_max_chars
        self._connections = {server.name: self._connection(server) for server in servers}
        self._personal: OrderedDict[tuple[str, str], Connection] = OrderedDict()
        self._retiring: set[asyncio.Task[None]] = set()
        self._seen: dict[str, tuple[Tool, ...]] = {}
        self._specs: tuple[ToolSpec, ...] | None = None

    def _connection(self, server: ServerConfig, principal: Principal | None = None) -> Connection:
        patience = _PERSONAL_PATIENCE if principal else _PATIENCE

        def on_change() -> None:
            if principal is None:
                self.recheck(server.name)
            self._forget_specs()

        tokens = Tokens(self._grants, server, owner_of(server, principal))
        return Connection(
            server, signer=self._signer, on_change=on_change, patience=patience, principal=principal, tokens=tokens
        )

    def _config(self, name: str) -> ServerConfig | None:
        connection = self._connections.get(name)
        return connection.config if connection else None

    @property
    def sign_in(self) -> SignIn:
        assert self.sign_in_service is not None
        return self.sign_in_service

    async def start(self) -> None:
        """Begin to connect; returns at once, with every server still down."""
        for connection in self._connections.values():
            connection.start()

    async def stop(self) -> None:
        for task in [*self._retiring, *([self._checking] if self._checking else [])]:
            task.cancel()
        if self.sign_in_service is not None:
            await self.sign_in_service.stop()
        everything = [*self._connections.values(), *self._personal.values()]
        await asyncio.gather(*(connection.stop() for connection in everything))

    def reconcile(self, servers: list[ServerConfig]) -> None:
        """Connect to these servers from now on. Those that stay as they were are not touched; calls under way at the
        others end first."""
        wanted = {server.name: server for server in servers}
        for name, connection in list(self._connections.items()):
            if wanted.get(name) != connection.config:
                self._retire(self._connections.pop(name))
                for key in [key for key in self._personal if key[0] == name]:
                    self._retire(self._personal.pop(key))
        kept = self._connections
        self._connections = {name: kept.get(name) or self._connection(server) for name, server in wanted.items()}
        for name in wanted.keys() - kept.keys():
            self._connections[name].start()
        self._forget_specs()

    def _retire(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.retire(self._timeout), name=f"retiring {connection.config.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _connection_of(self, server: str, principal: Principal) -> Connection | None:
        """The connection for a call: one for all, or the user's own, which is opened when first needed."""
        shared = self._connections.get(server)
        if shared is None or shared.config.share == "all":
            return shared
        key = (server, principal.user)
        if key not in self._personal:
            self._personal[key] = self._connection(shared.config, principal)
            self._personal[key].start()
            if len(self._personal) > _MOST_PERSONAL:
                self._retire(self._personal.popitem(last=False)[1])
        self._personal.move_to_end(key)
        return self._personal[key]

    def on_grants_changed(self) -> None:
        """Somebody has signed in or out, on whatever worker."""
        for connection in [*self._connections.values(), *self._personal.values()]:
            connection.forget_token()
        if self.sign_in_service is not None:
            self.sign_in_service.look()

    async def wait_until_connected(self, seconds: float) -> None:
        """Wait until every server has been tried, for at most `seconds`."""
        tried = [asyncio.create_task(connection.tried.wait()) for connection in self._connections.values()]
        if tried:
            _, late = await asyncio.wait(tried, timeout=seconds)
            for task in late:
                task.cancel()

    def specs(self) -> tuple[ToolSpec, ...]:
        if self._specs is None:
            self._specs = self._build_specs()
        return self._specs

    def find(self, name: str) -> ToolSpec | None:
        offered = (spec for spec in self.specs() if spec.name == name)
        return next(offered, None) or next((spec for spec in self._entrances() if spec.name == name), None)

    def _entrances(self) -> list[ToolSpec]:
        """What asks for a sign-in; not on offer once somebody has, but the call that asked must still find its end."""
        return [make_sign_in_tool(c.config) for c in self._connections.values() if c.config.signs_in]

    def instructions(self) -> str:
        told = (c.instructions.strip() for c in self._connections.values() if c.up)
        return "\n\n".join(text[:_MOST_DESCRIPTION] for text in told if text)

    def servers(self) -> list[ServerStatus]:
        return [connection.status() for connection in self._connections.values()]

    def changed(self) -> frozenset[tuple[str, str]]:
        return frozenset((server, tool) for server, tools in self._changed.items() for tool in tools)

    def recheck(self, server: str) -> None:
        if self._definitions is None:
            return
        self._unchecked.add(server)
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(self._definitions), name="definitions")

    async def _check(self, definitions: Definitions) -> None:
        """Compare what servers offer with what they offered first. What cannot be compared now is compared later."""
        while self._unchecked:
            server = self._unchecked.pop()
            connection = self._connections.get(server)
            if connection is None or not connection.tools:
                continue
            offered = {tool.name: _definition(tool) for tool in connection.tools}
            try:
                changed = await definitions.compare(server, offered)
            except StorageUnavailable:
                self._unchecked.add(server)
                await asyncio.sleep(_RECHECK_SECONDS)
                continue
            for tool in sorted(changed - self._changed.get(server, set())):
                log.warning("tool_definition_changed", server=server, tool=tool, held=connection.config.on_change)
            self._changed[server] = changed
            connection.checked = True
            self._forget_specs()

    def forwarded_headers(self) -> frozenset[str]:
        headers = (connection.config.forwarded_header for connection in self._connections.values())
        return frozenset(header.lower() for header in headers if header)

    async def call(
        self,
        spec: ToolSpec,
        arguments: JsonObject,
        *,
        principal: Principal,
        observer: CallObserver | None = None,
        answers: Sequence[KeptInput] = (),
    ) -> ToolResult | InputNeeded:
        """See `Toolbox.call`."""
        connection = self._connection_of(spec.server, principal)
        if connection is None:
            return _failed(spec, CallFailed(f"The MCP server {spec.server!r} is no longer connected.", ran=False))
        timeout = connection.config.timeout or self._timeout
        if any(kept.question.login and kept.answer and kept.answer.action != "accept" for kept in answers):
            note = f"The user did not sign in to {spec.server}. Do not try it again unless they ask for it."
            return ToolResult("denied", [text_block(note)])
        answers = [kept for kept in answers if not kept.question.login]
        if spec.helper and spec.tool == SIGN_IN:
            return await self._signed_in(connection, spec, principal)
        harmless = spec.read_only or spec.idempotent
        while True:
            try:
                result = await connection.call(
                    spec.tool, arguments, principal=principal, timeout=timeout, observer=observer, answers=answers
                )
                break
            except CallFailed as failure:
                if failure.sign_in and (needed := await self._ask_to_sign_in(connection, principal, failure)):
                    return needed
                if not (failure.lost and harmless):
                    return _failed(spec, failure)
                harmless = False  # once more, where a second time does no harm
                log.info("tool_call_again", server=spec.server, tool=spec.tool)
        return result if isinstance(result, InputNeeded) else reduce_result(result, self._most_chars)

    async def _ask_to_sign_in(
        self, connection: Connection, principal: Principal, failure: CallFailed
    ) -> InputNeeded | None:
        assert self.sign_in_service is not None
        try:
            question = await self.sign_in_service.question(connection.config, principal, failure.challenge)
        except StorageUnavailable:
            return None
        return question and InputNeeded((question,))

    async def _signed_in(
        self, connection: Connection, spec: ToolSpec, principal: Principal
    ) -> ToolResult | InputNeeded:
        """What the helper that asks for a sign-in says: the tools that there are then."""
        try:
            tools = await connection.ready()
        except CallFailed as failure:
            needed = await self._ask_to_sign_in(connection, principal, failure) if failure.sign_in else None
            return needed or _failed(spec, failure)
        names = ", ".join(make_spec(connection.config, tool).name for tool in tools)
        return ToolResult("ok", [text_block(f"The user is signed in to {spec.server}. Its tools: {names or 'none'}.")])

    # --- resources and prompts

    async def listed(self, kind: Listed, principal: Principal) -> list[JsonObject]:
        """See `Toolbox.listed`. A server that does not answer is left out."""
        asked = [
            connection for connection in self._connections.values() if supports_listing(connection.capabilities, kind)
        ]
        answers = await asyncio.gather(*(self._list(connection, kind, principal) for connection in asked))
        return [item for answer in answers for item in answer]

    async def _list(self, connection: Connection, kind: Listed, principal: Principal) -> list[JsonObject]:
        own = self._connection_of(connection.config.name, principal) or connection
        try:
            found = await own.ask(partial(list_items, kind), principal=principal, timeout=self._timeout)
        except CallFailed as failure:
            log.warning("mcp_not_listed", server=connection.config.name, kind=kind, reason=str(failure))
            return []
        config = connection.config
        if kind == "prompts":
            prefix = config.name if config.prefix is None else config.prefix
            found = [{**p, "prompt": p["name"], "name": exposed_name(prefix, config.name, p["name"])} for p in found]
        return [{"server": config.name, **item} for item in found]

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        """See `Toolbox.read_resource`."""
        name = server or await find_resource_server(self, uri, principal)
        try:
            return await self._ask(name, partial(request_resource, uri), principal)
        except McpFailed as error:
            cause = error.__cause__
            if isinstance(cause, CallFailed) and cause.refusal and cause.refusal["code"] in _UNKNOWN_RESOURCE_CODES:
                raise NotFound(f"No such resource: {uri[:200]!r}.", param="uri") from None
            raise

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        """See `Toolbox.get_prompt`."""
        found = next((p for p in await self.listed("prompts", principal) if p["name"] == name), None)
        if found is None:
            raise NotFound(f"There is no prompt {name[:200]!r}.", param="name")
        return await self._ask(found["server"], partial(request_prompt, found["prompt"], arguments), principal)

    async def complete(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        """See `Toolbox.complete`."""
        if ref.get("type") == "ref/prompt":
            found = next((p for p in await self.listed("prompts", principal) if p["name"] == ref.get("name")), None)
            if found is None:
                raise NotFound(f"There is no prompt {str(ref.get('name'))[:200]!r}.", param="ref")
            return await self._ask(
                found["server"], partial(request_completion, ref | {"name": found["prompt"]}, argument), principal
            )
        templates = await self.listed("resource_templates", principal)
        server = next((t["server"] for t in templates if t["uriTemplate"] == ref.get("uri")), None)
        if server is None:
            raise NotFound(f"There is no resource template {str(ref.get('uri'))[:200]!r}.", param="ref")
        return await self._ask(server, partial(request_completion, ref, argument), principal)

    async def _ask(self, server: str, question: Ask[JsonObject], principal: Principal) -> JsonObject:
        connection = self._connection_of(server, principal)
        if connection is None:
            raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        timeout = connection.config.timeout or self._timeout
        try:
            return await connection.ask(question, principal=principal, timeout=timeout)
        except CallFailed as failure:
            raise McpFailed(str(failure)) from failure

    def _tools_of(self, shared: Connection) -> tuple[Tool, ...] | None:
        """What a server offers; where everyone signs in alone, what it offers to whoever used it last."""
        if shared.up or shared.config.share == "all":
            return shared.tools if shared.up else None
        name = shared.config.name
        for (server, _), personal in reversed(self._personal.items()):
            if server == name and personal.tools:
                self._seen[name] = personal.tools
                break
        return self._seen.get(name) if shared.needs_sign_in else None

    def _forget_specs(self) -> None:
        self._specs = None
        if self._subscribers and (self._notifying is None or self._notifying.done()):
            self._notifying = asyncio.create_task(self._notify_subscribers(), name="tools changed")

    def subscribe(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call back after the tools have changed."""
        self._subscribers.append(callback)

    async def _notify_subscribers(self) -> None:
        """Debounce: notify once for changes within 50 ms."""
        await asyncio.sleep(_DEBOUNCE_SECONDS)
        for callback in self._subscribers:
            await callback()

    def _build_specs(self) -> tuple[ToolSpec, ...]:
        specs: dict[str, ToolSpec] = {}
        for connection in self._connections.values():
            tools = self._tools_of(connection)
            if tools is None:
                if connection.needs_sign_in:
                    helper = make_sign_in_tool(connection.config)
                    specs.setdefault(helper.name, helper)
                continue
            holds = self._definitions is not None and connection.config.on_change == "hold"
            if holds and not connection.checked:
                continue
            held = self._changed.get(connection.config.name, set()) if holds else set[str]()
            for tool in sorted(
                tools, key=lambda tool: tool.name
            ):  # the prompt cache needs one order, and some have none
                if connection.config.permits(tool.name) and tool.name not in held:
                    spec = make_spec(connection.config, tool)
                    if spec.name in specs:
                        spec = make_spec(connection.config, tool, distinct=True)
                    specs[spec.name] = spec
            for helper in list_builtin_tools(connection.config):
                specs.setdefault(helper.name, helper)
        if len(specs) > _MOST_TOOLS:
            log.warning("too_many_tools", tools=len(specs), offered=_MOST_TOOLS)
        return tuple(specs.values())[:_MOST_TOOLS]


def make_spec(server: ServerConfig, tool: Tool, *, distinct: bool = False) -> ToolSpec:
    """A server's tool as the gateway offers it. The annotations' defaults are the protocol's: the cautious ones."""
    hints = tool.annotations
    return ToolSpec(
        name=exposed_name(server.name if server.prefix is None else server.prefix, server.name, tool.name, distinct),
        server=server.name,
        tool=tool.name,
        description=(tool.description or tool.title or tool.name)[:_MOST_DESCRIPTION],
        input_schema=tool.input_schema,
        title=tool.title,
        output_schema=tool.output_schema,
        read_only=bool(hints and hints.read_only_hint),
        destructive=not (hints and hints.destructive_hint is False),
        idempotent=bool(hints and hints.idempotent_hint),
        open_world=not (hints and hints.open_world_hint is False),
        approval=server.approval,
    )


def _definition(tool: Tool) -> JsonObject:
    """What a model is told of a tool, and what it is told about its effects."""
    told = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: told.get(name) for name in ("name", "title", "description", "inputSchema", "annotations")}


def _failed(spec: ToolSpec, failure: CallFailed) -> ToolResult:
    """No result: `unknown` where the tool may have changed something and nobody can tell."""
    if failure.ran is None and not spec.read_only:
        note = f"{failure} It may or may not have taken effect: find out before you call it again."
        return ToolResult(outcome="unknown", content=[text_block(note)])
    return ToolResult(outcome="error", content=[text_block(str(failure))], refusal=failure.refusal)
