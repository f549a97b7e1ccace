"""The tools, resources and prompts of all connected servers."""

from collections.abc import Collection, Sequence
from functools import partial

import msgspec
from mcp.types import CallToolResult

from gateway.common.concurrency import LruDict
from gateway.common.logging import get_logger
from gateway.common.schema_defaults import fill_required_defaults
from gateway.config import Settings
from gateway.domain.errors import StorageUnavailable
from gateway.domain.messages import (
    JsonObject,
    PendingInput,
    Principal,
    ToolResult,
    ToolSpec,
    text_block,
)
from gateway.mcp_client.builtin_tools import SIGN_IN, make_sign_in_tool
from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.change_notifier import ChangeCallback, ChangeNotifier
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.mcp_client.connection.negotiation import ConnectionMemory
from gateway.mcp_client.connection_pool import ConnectionPool
from gateway.mcp_client.definition_check import DefinitionChecker
from gateway.mcp_client.elicitation import answers_required_pages, parse_required_pages
from gateway.mcp_client.identity_keys import IdentityKeys
from gateway.mcp_client.instructions import quote_instructions
from gateway.mcp_client.oauth.grants.caller_tokens import CallerTokenProvider
from gateway.mcp_client.oauth.grants.gateway_tokens import GatewayTokenProvider
from gateway.mcp_client.oauth.sign_in import SignInService
from gateway.mcp_client.oauth.tokens import GRANT_MAX_AGE_SECONDS, AccessTokenProvider, get_grant_owner
from gateway.mcp_client.repeated_calls import call_with_repeats
from gateway.mcp_client.results.dump import ResultLimits, dump_result, truncate_result
from gateway.mcp_client.server_items.items import ServerItems
from gateway.mcp_client.tasks.client import ServerTasks
from gateway.mcp_client.tool_specs import MAX_TOOLS, SpecBuilder
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig, ServerPool
from gateway.ports.tools import (
    DefinitionProblem,
    ServerStatus,
    SignIn,
    ToolCallRequest,
    ToolDefinitionStore,
)

log = get_logger(__name__)

_CONNECT_TIMEOUT_SECONDS, _PERSONAL_CONNECT_TIMEOUT_SECONDS = 1.0, 15.0
_MAX_MEMORIES = 1_000
_MAX_CALLERS = 1_000
_MAX_USER_LISTS = 200


class McpToolbox(ServerPool, ServerItems):
    """See `Toolbox`. Offers a server's tools while the server is available.

    Every change passes through `reconcile()`, and subscribers are notified once for changes within 50 ms.
    """

    def __init__(
        self,
        servers: list[ServerConfig],
        settings: Settings,
        definitions: ToolDefinitionStore | None = None,
        grants: GrantStore | None = None,
        *,
        identity_keys: IdentityKeys | None = None,
        grant_max_age_seconds: float = GRANT_MAX_AGE_SECONDS,
    ) -> None:
        secret = settings.tools_server_secret
        self._identity = TokenIssuer(identity_keys, secret.get_secret_value() if secret else None)
        self._grants = grants
        self._grant_max_age_seconds = grant_max_age_seconds
        self._max_message_bytes = settings.mcp_max_message_bytes
        self._max_call_seconds = settings.tool_progress_timeout
        self._max_task_seconds = settings.tool_task_timeout
        self._result_limits = ResultLimits(
            settings.tool_result_max_chars, settings.tool_result_max_blocks, settings.tool_result_max_data_bytes
        )
        self._specs: tuple[ToolSpec, ...] | None = None
        self._user_specs: LruDict[str, tuple[ToolSpec, ...]] = LruDict(_MAX_USER_LISTS)
        self._notifier = ChangeNotifier()
        self._caller_tokens: LruDict[tuple[str, str], CallerTokenProvider] = LruDict(_MAX_CALLERS)
        self._memories: LruDict[tuple[object, ...], ConnectionMemory] = LruDict(_MAX_MEMORIES)
        self._default_roots = settings.mcp_roots
        pool = ConnectionPool(
            self._add_default_roots(servers), self._make_connection, drain_seconds=settings.tool_timeout
        )
        self._checker = DefinitionChecker(definitions, pool.find_offer, lambda user: self.reconcile(user=user))
        self.tasks = ServerTasks(pool)
        ServerItems.__init__(self, pool, SpecBuilder(pool, self._checker), settings.tool_timeout)
        self._item_sources: frozenset[str] = frozenset()
        self._uses_instructions = settings.mcp_instructions
        self.sign_in_service = None
        if grants is not None:
            self.sign_in_service = SignInService(
                grants, settings.public_url, self._find_config, strict_issuer=settings.mcp_oauth_strict_issuer
            )

    def _make_connection(
        self, server: ServerConfig, principal: Principal | None, capabilities: JsonObject | None
    ) -> ServerConnection:
        is_main = principal is None and capabilities is None
        user = None if principal is None else principal.user
        memory, on_change = self._find_memory(server), partial(self.reconcile, changed_server=server.name, user=user)
        if capabilities is not None:  # for legacy hosts, which find the tools at the main connection
            protocol = "legacy" if server.protocol == "auto" else server.protocol
            server = server.model_copy(update={"protocol": protocol, "type": memory.get_transport(server)})
            memory, on_change = ConnectionMemory(), _ignore_change
        return ServerConnection(
            server,
            identity=self._identity,
            on_change=on_change,
            on_items_changed=partial(self._notifier.schedule_notification, user=user),
            connect_timeout_seconds=_CONNECT_TIMEOUT_SECONDS if is_main else _PERSONAL_CONNECT_TIMEOUT_SECONDS,
            principal=principal and msgspec.structs.replace(principal, token=None),
            memory=memory,
            capabilities=capabilities,
            max_message_bytes=self._max_message_bytes,
            max_call_seconds=self._max_call_seconds,
            tokens=self._create_tokens(server, principal),
            max_task_seconds=self._max_task_seconds,
        )

    def _add_default_roots(self, servers: Sequence[ServerConfig]) -> list[ServerConfig]:
        default = {"roots": self._default_roots}
        return [server.model_copy(update=default) if server.roots is None else server for server in servers]

    def _create_tokens(self, server: ServerConfig, principal: Principal | None) -> AccessTokenProvider:
        if server.gets_own_tokens:
            return GatewayTokenProvider(server)
        owner = get_grant_owner(server, principal)
        if server.exchanges_tokens:
            return self._find_caller_tokens(server, owner)
        return AccessTokenProvider(self._grants, server, owner, max_age_seconds=self._grant_max_age_seconds)

    def _find_caller_tokens(self, server: ServerConfig, owner: str) -> CallerTokenProvider:
        """Return the tokens of a user, which all connections share."""
        tokens = self._caller_tokens.get((server.name, owner))
        if tokens is None or not tokens.serves(server):
            tokens = self._caller_tokens[server.name, owner] = CallerTokenProvider(server, owner, self._grants)
        return tokens

    def _find_memory(self, server: ServerConfig) -> ConnectionMemory:
        """Return the memory that all connections to this server share."""
        key = (server.name, server.url, server.command, server.args)
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = ConnectionMemory()
        return memory

    def _find_config(self, name: str) -> ServerConfig | None:
        connection = self._pool.get_shared(name)
        return connection.config if connection else None

    # --- life cycle

    async def connect_servers(self) -> None:
        """Begin to connect. Returns at once, with every server still unavailable."""
        self._pool.open_connections()

    async def disconnect_servers(self) -> None:
        """Close all connections, and cancel sign-ins and checks under way."""
        await self._notifier.cancel_notification()
        await self._checker.cancel_check()
        if self.sign_in_service is not None:
            await self.sign_in_service.cancel_sign_ins()
        await self._watches.stop()
        await self.tasks.stop_cancellations()
        await self._pool.close_connections()

    async def wait_until_connected(self, seconds: float) -> None:
        """Wait, at most `seconds`, until every server was tried once."""
        await self._pool.wait_until_attempted(seconds)

    def reconcile(
        self,
        servers: Sequence[ServerConfig] | None = None,
        *,
        changed_server: str | None = None,
        user: str | None = None,
    ) -> None:
        """Update connections, definition checks and tool list; notify subscribers.

        `servers`: connect to exactly these from now on; unchanged ones keep their connections, and calls in progress at
        the others may end. `changed_server`: the tools or the state of this one have changed. `user`: the only one whom
        the change concerns.
        """
        if servers is not None:
            self._pool.replace_servers(self._add_default_roots(servers))
            self._checker.recheck_withheld()
        if changed_server is not None:
            self._checker.request_check(changed_server, user)
        self._specs = None
        self._user_specs.clear()
        sources = self._list_item_sources()
        has_same_items, self._item_sources = sources == self._item_sources, sources
        if has_same_items:
            self._notifier.schedule_notification(("tools",), user)
        else:
            self._notifier.schedule_notification(("tools", "resources", "prompts"))

    def _list_item_sources(self) -> frozenset[str]:
        """The available servers that have resources or prompts."""
        capabilities = {connection.config.name: connection.server_capabilities for connection in self._pool}
        return frozenset(name for name, has in capabilities.items() if has and (has.resources or has.prompts))

    def subscribe_to_changes(self, callback: ChangeCallback) -> None:
        """Await `callback` after the tools, resources or prompts on offer have changed."""
        self._notifier.add_subscriber(callback)

    def announce_other_lists(self) -> None:
        """Tell subscribers that callers see other tools, resources and prompts."""
        self._notifier.schedule_notification(("tools", "resources", "prompts"))

    def on_grants_changed(self) -> None:
        """A user has signed in or out, at any worker."""
        self._pool.discard_tokens()
        if self.sign_in_service is not None:
            self.sign_in_service.on_grants_changed()

    # --- tools

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        """See `Toolbox.list_specs`."""
        if self._specs is None:
            self._specs = self._spec_builder.build_specs()
        if principal is None or not self._pool.has_personal_servers:
            return self._specs
        specs = self._user_specs.get(principal.user)
        if specs is None:
            self._pool.open_for_listing(principal)
            specs = self._user_specs[principal.user] = self._spec_builder.build_user_specs(principal.user)
        return specs

    async def connect_user(self, principal: Principal) -> None:
        """See `Toolbox.connect_user`."""
        await self._pool.connect_user(principal)

    def explain_absence(self, server: str, principal: Principal) -> str:
        """See `Toolbox.explain_absence`."""
        connection = self._pool.get_connection(server, principal)
        if connection is None or connection.is_available:
            return ""
        reason = connection.get_status().reason or "it does not answer yet"
        return f"The MCP server {server!r} is not available to this user: {reason}."

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        """See `Toolbox.find_tool`.

        Finds sign-in tools also after a sign-in, for the calls that asked for it.
        """
        specs = self.list_specs(principal)
        spec = next((spec for spec in specs if spec.name == name), None)
        spec = spec or next((spec for spec in specs if name in spec.aliases), None)
        return spec or next((spec for spec in self._sign_in_tools() if spec.name == name), None)

    def _sign_in_tools(self) -> list[ToolSpec]:
        names = self._spec_builder.names
        configs = [connection.config for connection in self._pool]
        return [make_sign_in_tool(config, names) for config in configs if config.allows_sign_in]

    def get_instructions(self, servers: Collection[str]) -> str:
        """See `Toolbox.get_instructions`."""
        return quote_instructions((name, text) for name, text in self.list_instructions() if name in servers)

    def list_instructions(self) -> list[tuple[str, str]]:
        """See `Toolbox.list_instructions`."""
        if not self._uses_instructions:
            return []
        offers = [self._pool.find_offer(connection.config.name) for connection in self._pool]
        return [
            (offer.config.name, offer.instructions)
            for offer in offers
            if offer is not None
            and offer.instructions
            and offer.config.permits_anything
            and not self._checker.withholds_instructions(offer)
        ]

    def list_server_statuses(self) -> list[ServerStatus]:
        """See `Toolbox.list_server_statuses`."""
        statuses = [connection.get_status() for connection in self._pool]
        return [self._add_surplus(status) for status in statuses]

    def _add_surplus(self, status: ServerStatus) -> ServerStatus:
        surplus = self._spec_builder.surplus.get(status.name)
        if not surplus:
            return status
        text = f"{surplus:,} tools are left out, because all servers together have more than {MAX_TOOLS:,}"
        problem = DefinitionProblem("tool", "", text, left_out=True)
        return msgspec.structs.replace(status, definition_problems=(problem, *status.definition_problems))

    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        """See `Toolbox.list_changed_tools`."""
        return self._checker.list_changed()

    def recheck_server(self, server: str) -> None:
        """See `Toolbox.recheck_server`."""
        self._checker.request_check(server)

    @property
    def sign_in(self) -> SignIn:
        """See `Toolbox.sign_in`."""
        assert self.sign_in_service is not None
        return self.sign_in_service

    def get_forwarded_headers(self) -> frozenset[str]:
        """See `Toolbox.get_forwarded_headers`."""
        headers = (connection.config.forwarded_header for connection in self._pool)
        return frozenset(header.lower() for header in headers if header)

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        """See `Toolbox.call_tool`."""
        spec, principal = request.spec, request.principal
        connection = await self._pool.get_host_connection(spec.server, principal, request.host, request.observer)
        if connection is None:
            error = ToolCallError(f"The MCP server {spec.server!r} is no longer connected.", did_run=False)
            return _make_error_result(spec, error)
        sign_ins = [stored for stored in request.answers if stored.question.login]
        if any(stored.answer and stored.answer.action != "accept" for stored in sign_ins):
            note = f"The user did not sign in to {spec.server}. Do not try it again unless they ask for it."
            return ToolResult("denied", [text_block(note)])
        server_answers = [stored for stored in request.answers if not stored.question.login]
        if answers_required_pages(server_answers):
            if any(stored.answer and stored.answer.action != "accept" for stored in server_answers):
                note = "The user did not visit the page that the server requires. Do not try it again unless they ask."
                return ToolResult("denied", [text_block(note)])
            server_answers = []
        try:
            if spec.helper and spec.tool == SIGN_IN:
                return await self._describe_tools(connection, spec)
            timeout = connection.config.timeout or self._timeout
            arguments = fill_required_defaults(spec.input_schema, request.arguments)
            sent = msgspec.structs.replace(request, arguments=arguments, answers=server_answers)
            result = await self._call_or_resume(connection, sent, timeout)
        except ToolCallError as error:
            question = await self._ask_to_sign_in(connection, request, error) if error.needs_sign_in else None
            if request.host is None or not request.host.is_legacy:  # a legacy host knows the server's error itself
                question = question or parse_required_pages(error.refusal)
            return question or _make_error_result(spec, error)
        if isinstance(result, PendingInput):
            return result
        return dump_result(result) if request.is_whole else truncate_result(result, self._result_limits)

    async def _call_or_resume(
        self, connection: ServerConnection, request: ToolCallRequest, timeout: float
    ) -> CallToolResult | PendingInput:
        """Make a call, or go on with its task.

        A call that cannot wait follows its task to the end.
        """
        if request.task is not None:
            result = await self.tasks.resume_call(connection, request, timeout)
        else:
            result = await call_with_repeats(connection, request, timeout)
        if isinstance(result, PendingInput) and result.task is not None and not request.can_wait:
            seconds = max(timeout, self._max_call_seconds)
            return await self.tasks.follow_call(connection, request, result.task, seconds)
        return result

    async def _ask_to_sign_in(
        self, connection: ServerConnection, request: ToolCallRequest, error: ToolCallError
    ) -> PendingInput | None:
        """The question to the user, if there can be one.

        None if only an admin may sign in, if a sign-in has not helped, or if storage is unavailable.
        """
        assert self.sign_in_service is not None
        answered, challenge = {stored.question.key for stored in request.answers}, error.challenge
        make_question = self.sign_in_service.make_question
        try:
            question = await make_question(connection.config, request.principal, challenge, answered)
        except StorageUnavailable:
            return None
        return question and PendingInput((question,))

    async def _describe_tools(self, connection: ServerConnection, spec: ToolSpec) -> ToolResult:
        """The sign-in tool's result: the tools available after the sign-in."""
        tools = await connection.wait_for_tools()
        names = ", ".join(self._spec_builder.names.get_name(connection.config, tool.name) for tool in tools)
        return ToolResult("ok", [text_block(f"The user is signed in to {spec.server}. Its tools: {names or 'none'}.")])


def _ignore_change() -> None:
    """The tools on offer are those of another connection."""


def _make_error_result(spec: ToolSpec, error: ToolCallError) -> ToolResult:
    """A result for a failed call.

    `unknown` if the tool may have run and changed something.
    """
    if error.did_run is None and not spec.read_only:
        note = f"{error} It may or may not have taken effect: find out before you call it again."
        return ToolResult(outcome="unknown", content=[text_block(note)])
    return ToolResult(outcome="error", content=[text_block(str(error))], refusal=error.refusal)
