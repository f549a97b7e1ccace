"""The connection to an MCP server.

It connects, stays connected, reconnects and sends requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial

from mcp import Client, MCPError
from mcp.types import CallToolResult, ServerCapabilities, Tool

from gateway.common.concurrency import Backoff, Deadline, SupervisedTask, wait_or_poll
from gateway.common.logging import get_logger
from gateway.common.urls import strip_url_secrets
from gateway.domain.messages import JsonObject, PendingInput, Principal
from gateway.mcp_client.caller_identity import TokenIssuer, acting_for, add_trace_headers, forward_header
from gateway.mcp_client.connection.client_features import declare_features
from gateway.mcp_client.connection.errors import (
    TokenUnavailable,
    describe_error,
    find_token_problem,
    is_unreached,
    is_wrong_transport,
)
from gateway.mcp_client.connection.item_changes import ItemChanges
from gateway.mcp_client.connection.negotiation import ConnectionMemory
from gateway.mcp_client.connection.ongoing_calls import OngoingCalls
from gateway.mcp_client.connection.requests import ClientRequest, RequestSender, T
from gateway.mcp_client.connection.resource_updates import ResourceUpdates
from gateway.mcp_client.connection.roots import HostRoots
from gateway.mcp_client.connection.session import open_session
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.connection.tool_list import ServerToolList
from gateway.mcp_client.connection.watch import ServerWatch
from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.mcp_client.size_limit import DEFAULT_MAX_MESSAGE_BYTES
from gateway.mcp_client.stdio.transport import ProcessReport
from gateway.mcp_client.transports import RequestHook
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import ChangeKind, ServerStatus, ToolCallRequest
from gateway_runtime.telemetry.trace_context import is_tracing

log = get_logger(__name__)

_MIN_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = {"http": 5.0, "sse": 5.0, "stdio": 60.0}
"""Longest pause before an attempt."""
_MIN_SESSION_SECONDS = {"http": 0.0, "sse": 0.0, "stdio": 60.0}
"""Length of a session that resets the pause.

A remote server that forgot its session is asked again soon; a command that crashes is not.
"""
_STOP_SECONDS, _STOP_UNCONNECTED_SECONDS = 5.0, 0.1
_ANNOUNCE_SECONDS = 5.0
MAX_INSTRUCTIONS_LENGTH = 256 * 1024
_PERSONAL_REASON = "it takes tokens for which the callers' own are exchanged; an API key is none"
_REFUSED_REASON = "it refuses the credentials that it is sent"


class ServerConnection:
    """The connection to one server, opened and closed by one task.

    The client of a 2026-07-28 server survives the server's restarts: its listen stream shows when the server is
    unavailable. A legacy client is bound to a session that the server forgets, so it is opened again.

    `principal`: the only user of this connection; None if all users share it. `on_change` is called when the tools or
    the state change, `on_items_changed` when the server announces changes of resources or prompts. Requests wait
    `connect_timeout_seconds` for a server that is starting.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        identity: TokenIssuer,
        on_change: Callable[[], None],
        on_items_changed: Callable[[frozenset[ChangeKind]], None],
        connect_timeout_seconds: float = 1.0,
        tokens: AccessTokenProvider,
        principal: Principal | None = None,
        memory: ConnectionMemory | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_call_seconds: float = 0.0,
        max_task_seconds: float = 86_400.0,
        capabilities: JsonObject | None = None,
    ) -> None:
        self.config = config
        self.capabilities = declare_features(config, capabilities)
        """Client capabilities that its legacy sessions declare."""
        self.instructions = ""
        self.announces_updates = False
        """Whether the server of the last session announces updates of resources."""
        self._tokens = tokens
        self._principal = principal
        self._identity = identity
        self._hooks: list[RequestHook] = []
        if (header := config.forwarded_header) is not None:
            self._hooks.append(forward_header(header))
        if is_tracing():
            self._hooks.append(add_trace_headers)
        self._protocol_version: str | None = None
        self._status = ConnectionStatus(config.name, on_change)
        is_of_roots_host = capabilities is not None and "roots" in capabilities
        self.host_roots = HostRoots(config.name) if is_of_roots_host else None
        """Roots of the only host that the connection serves."""
        self._calls = OngoingCalls(config, self.host_roots)
        self.problems = DefinitionProblems(config.name)
        self._tool_list = ServerToolList(self._status, self.problems, on_change=on_change)
        self._report = ProcessReport()
        self._max_message_bytes = max_message_bytes
        self._memory = memory or ConnectionMemory()
        self._item_changes = ItemChanges(on_items_changed)
        self._watch = ServerWatch(
            self._tool_list, self._status, self._calls, self._item_changes, is_http=self._uses_http
        )
        self._requests = RequestSender(
            config,
            status=self._status,
            calls=self._calls,
            tokens=tokens,
            uses_http=self._uses_http,
            connect_timeout_seconds=connect_timeout_seconds,
            max_call_seconds=max_call_seconds,
            max_task_seconds=max_task_seconds,
            find_tool=self._tool_list.find_tool,
        )
        self._wrong_transport_reason: str | None = None
        self._is_stopping = False
        self._owner = SupervisedTask(f"mcp {config.name}", self._on_behalf(self._run_forever))

    # --- life cycle

    def start_connection(self) -> None:
        """Connect in the background, and stay connected until `stop_connection()`."""
        if self.config.fault or self.config.disabled:
            self._status.set_unavailable(self.config.fault or "disabled in the configuration", "disabled")
            self._status.attempted_event.set()
            return
        if self.config.exchanges_tokens and self._principal is None:
            self._status.set_unavailable(_PERSONAL_REASON, "needs_auth")
            self._status.attempted_event.set()
            return
        self._owner.start()

    async def drain_and_stop(self, seconds: float) -> None:
        """Stop once no call is in progress, at most `seconds` from now."""
        try:
            await self._calls.wait_until_idle(seconds)
        finally:
            await self.stop_connection()

    async def stop_connection(self) -> None:
        """Close the session.

        A server that does not let go has five seconds.
        """
        self._is_stopping = True
        self._status.broken_event.set()
        is_connected = self._status.client is not None
        await self._owner.stop(grace_seconds=_STOP_SECONDS if is_connected else _STOP_UNCONNECTED_SECONDS)
        await self._calls.stop()

    @property
    def was_attempted(self) -> bool:
        """Whether the first attempt to connect has ended."""
        return self._status.attempted_event.is_set()

    async def wait_until_attempted(self) -> None:
        """Return when the first attempt to connect has ended, however it ended."""
        await self._status.attempted_event.wait()

    def _on_behalf(self, run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Wrap `run` so that its requests name the connection's user, if any."""

        async def run_identified() -> None:
            with acting_for(self._principal) if self._principal else nullcontext():
                await run()

        return run_identified

    async def _run_forever(self) -> None:
        backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS[self.config.transport])
        while not self._is_stopping:
            self._status.broken_event.clear()
            self._memory.begin_attempt()
            retries_at_once = False
            try:
                if await self._connect_and_watch() >= _MIN_SESSION_SECONDS[self.config.transport]:
                    backoff.reset()
            except Exception as error:  # noqa: BLE001 - whatever ends a session, also a group, is followed by a retry
                retries_at_once = self._on_failed_attempt(error)
            finally:
                self._status.set_disconnected()
                if not retries_at_once:
                    self._status.attempted_event.set()
            if not self._is_stopping and not retries_at_once:
                self._status.retry_event.clear()
                await wait_or_poll(self._status.retry_event, backoff.next_delay())

    def _on_failed_attempt(self, error: Exception) -> bool:
        """Show the reason, and return whether to try again at once."""
        self._status.token_problem = find_token_problem(error)
        if self._status.token_problem is not None:
            self._status.set_unavailable(self._status.token_problem, "needs_auth")
            return False
        if self._tokens.is_refused:
            self._status.set_unavailable(_REFUSED_REASON, "needs_auth")
            return False
        reason = self._report.reason or describe_error(error)
        is_wrong = is_wrong_transport(error)
        if is_wrong and self._memory.try_other_transport(self.config):
            self._wrong_transport_reason = reason
            return True
        if not is_wrong and not is_unreached(error) and self._memory.on_failed():
            return True
        self._memory.end_trial()
        self._status.set_unavailable(self._wrong_transport_reason or reason)
        self._wrong_transport_reason = None
        return False

    def _uses_http(self) -> bool:
        return self._memory.get_transport(self.config) == "http"

    async def _connect_and_watch(self) -> float:
        """Stay connected until the session breaks or must be closed.

        Returns the seconds of the session. All of it runs in the owner task.
        """
        clock = asyncio.get_running_loop().time
        session = open_session(
            self.config,
            hooks=self._hooks,
            tokens=self._tokens,
            calls=self._calls,
            tool_list=self._tool_list,
            item_changes=self._item_changes,
            problems=self.problems,
            on_end=self._status.broken_event.set,
            identity=self._identity,
            memory=self._memory,
            report=self._report,
            max_message_bytes=self._max_message_bytes,
            capabilities=self.capabilities,
        )
        async with session as client:
            self._protocol_version = client.protocol_version
            self.instructions = (client.instructions or "")[:MAX_INSTRUCTIONS_LENGTH]
            resources = client.server_capabilities.resources
            self.announces_updates = bool(resources and resources.subscribe)
            self._status.set_connected(client)
            connected_at = clock()
            await self._watch_until_broken(client)
        if not self._is_stopping:
            lost = "the server forgot the session, or the connection broke"
            self._status.set_unavailable(self._report.reason or lost)
        return clock() - connected_at

    async def _watch_until_broken(self, client: Client) -> None:
        run = self._on_behalf(partial(self._watch.watch_forever, client))
        watcher = SupervisedTask(f"mcp watch {self.config.name}", run)
        forwarder = SupervisedTask(f"mcp changes {self.config.name}", self._item_changes.forward_forever)
        watcher.start()
        forwarder.start()
        try:
            await self._status.broken_event.wait()
        finally:
            self._status.set_disconnected()
            await asyncio.gather(watcher.stop(), forwarder.stop())

    # --- state

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that were listed last, also while the server is unavailable."""
        return self._tool_list.tools

    @property
    def knows_tools(self) -> bool:
        """Whether the tools were listed since the start."""
        return self._tool_list.is_known

    @property
    def is_available(self) -> bool:
        """Whether calls may be sent now."""
        return self._status.is_available

    @property
    def is_legacy(self) -> bool:
        """Whether the last session spoke the legacy protocol."""
        return self._memory.era == "legacy"

    @property
    def needs_sign_in(self) -> bool:
        """Whether a user must sign in to the server, and can."""
        return self._requests.needs_sign_in

    @property
    def server_capabilities(self) -> ServerCapabilities | None:
        """Capabilities that the server declares; None while it is unavailable."""
        client = self._status.client
        return client.server_capabilities if client is not None and self.is_available else None

    async def announce_roots_change(self) -> None:
        """Tell the server that its host's roots have changed."""
        client = self._status.client
        if self.host_roots is None or client is None:
            return
        self.host_roots.forget()
        try:
            async with Deadline.after(_ANNOUNCE_SECONDS).limit():
                await client.send_roots_list_changed()  # pyright: ignore[reportDeprecated]
        except (MCPError, TimeoutError) as error:
            log.info("roots_change_not_announced", server=self.config.name, error=type(error).__name__)

    def admit_caller(self, principal: Principal) -> None:
        """See `AccessTokenProvider.admit_caller`; a caller without a token is refused with its request."""
        with suppress(TokenUnavailable):
            self._tokens.admit_caller(principal)

    def discard_token(self) -> None:
        """Read the stored grant again before the next request."""
        self._tokens.discard_cached()

    def get_status(self) -> ServerStatus:
        """State, reason and versions, for people."""
        return ServerStatus(
            name=self.config.name,
            url=strip_url_secrets(self.config.url) or None,
            transport=self._memory.get_transport(self.config),
            state=self._status.state,
            since=self._status.since.isoformat(timespec="milliseconds"),
            reason=self._status.reason,
            tools=len(self.tools) if self.is_available else 0,
            protocol_version=self._protocol_version,
            last_output=self._report.last_lines if not self.is_available else (),
            definition_problems=self.problems.list_all(),
        )

    # --- requests, from any task

    @property
    def resource_updates(self) -> ResourceUpdates:
        """Listeners to updates that a legacy server announces."""
        return self._item_changes.resource_updates

    async def wait_for_client(self) -> Client:
        """See `RequestSender.wait_for_client`."""
        return await self._requests.wait_for_client()

    async def wait_until_disconnected(self, client: Client) -> None:
        """Return when the session of a client has ended."""
        if self._status.client is client:
            await self._status.ended_event.wait()

    async def wait_for_tools(self) -> tuple[Tool, ...]:
        """The server's tools, once it is connected.

        Raises:
            ToolCallError: it does not connect in time.
        """
        await self._requests.wait_for_client()
        return self.tools

    async def send_tool_call(self, request: ToolCallRequest, timeout: float) -> CallToolResult | PendingInput:
        """See `RequestSender.send_tool_call`."""
        return await self._requests.send_tool_call(request, timeout)

    async def send_request(self, request: ClientRequest[T], *, principal: Principal, timeout: float) -> T:
        """See `RequestSender.send_request`."""
        return await self._requests.send_request(request, principal=principal, timeout=timeout)
