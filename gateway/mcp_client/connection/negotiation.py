"""Negotiation of the protocol era, with a memory of earlier attempts.

The SDK's negotiation waits ten seconds for `server/discover`, forgets the era, and cannot continue with a server that
exits on it.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Literal, cast

from mcp import Client, MCPError
from mcp.client import ClientSession, Transport
from mcp.client._transport import TransportStreams
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.types import (
    REQUEST_TIMEOUT,
    UNSUPPORTED_PROTOCOL_VERSION,
    DiscoverResult,
    InitializedNotification,
    InitializeRequest,
    InitializeRequestParams,
    InitializeResult,
    UnsupportedProtocolVersionErrorData,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from gateway.common.concurrency import Deadline
from gateway.ports.servers import ServerConfig

_PROBE_SECONDS = 5.0
"""Time limit of `server/discover`.

A server that starts slowly answers the handshake that follows.
"""


class ConnectionMemory:
    """Findings of earlier attempts to connect to a server.

    All connections to the server share it. `era` is that of the last session. `skips_probe`: `server/discover` may have
    ended the last attempt, so the next one begins with the legacy handshake.
    """

    def __init__(self) -> None:
        self.era: Literal["legacy", "modern"] | None = None
        self.skips_probe = False
        self._transport: Literal["http", "sse"] | None = None
        self._trial_transport: Literal["http", "sse"] | None = None
        self._is_probing = self._is_connected = self._has_retried = False

    def begin_attempt(self) -> None:
        """An attempt to connect begins."""
        self._is_probing = self._is_connected = False

    def begin_probe(self) -> None:
        """A probe is sent in this attempt."""
        self._is_probing = True

    def on_connected(self, *, is_legacy: bool) -> None:
        """A session is open."""
        self.era = "legacy" if is_legacy else "modern"
        self.skips_probe = is_legacy
        self._is_connected, self._has_retried = True, False
        self._transport, self._trial_transport = self._trial_transport or self._transport, None

    def get_transport(self, config: ServerConfig) -> Literal["http", "sse", "stdio"]:
        """The transport of the current or next attempt."""
        return self._trial_transport or self._transport or config.transport

    def try_other_transport(self, config: ServerConfig) -> bool:
        """Use the other transport of HTTP next, if the entry names none.

        Returns False if that was tried already.
        """
        if self._trial_transport is not None or config.type is not None or self._is_connected:
            return False
        self._trial_transport = "http" if self.get_transport(config) == "sse" else "sse"
        return True

    def end_trial(self) -> None:
        """Return to the first transport."""
        self._trial_transport = None

    def on_failed(self) -> bool:
        """Choose how the attempt after one that has reached the server begins.

        Returns whether to make it at once.

        Attempts with and without a probe alternate, since a server that exits on a probe looks like one that cannot
        start. Only the first change is made at once. The end of an open session changes nothing.
        """
        if self._is_connected:
            return False
        self.era, self.skips_probe = None, self._is_probing
        is_first = self._is_probing and not self._has_retried
        self._has_retried = self._has_retried or self._is_probing
        return is_first


class NegotiatingClient(Client):
    """The SDK's client, with the gateway's negotiation instead of its own."""

    negotiate: Callable[[ClientSession], Awaitable[None]]
    create_dispatcher: Callable[[TransportStreams], JSONRPCDispatcher]

    async def __aenter__(self) -> "NegotiatingClient":
        self._connect = self._connect_streams
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(await self._build_session(stack))
            await self.negotiate(session)
            self._session = session
            self._exit_stack = stack.pop_all()
        return self

    async def _connect_streams(self, stack: AsyncExitStack, _mode: str, _raises: bool) -> JSONRPCDispatcher:
        return self.create_dispatcher(await stack.enter_async_context(cast("Transport", self.server)))


async def negotiate_protocol(session: ClientSession, config: ServerConfig, memory: ConnectionMemory) -> None:
    """Open a session in the pinned era, or in the server's.

    Raises:
        MCPError: the server refuses, or its connection ended.
        RuntimeError: it speaks no version that the gateway speaks.
    """
    if config.protocol in MODERN_PROTOCOL_VERSIONS:
        session.adopt(await _discover(session, config.protocol))
        return
    if config.protocol in HANDSHAKE_PROTOCOL_VERSIONS:
        await _initialize(session, config.protocol)
        return
    if config.protocol == "legacy":
        await session.initialize()
        return
    if memory.skips_probe:
        try:
            await session.initialize()
        except MCPError as error:
            if not _is_answer(error):
                raise
        else:
            return
    memory.begin_probe()
    await _probe(session)


async def _probe(session: ClientSession) -> None:
    """Ask for the current protocol, then fall back to the legacy handshake.

    An unanswered probe may be answered late, by a server that starts slowly and speaks only the current protocol. It
    refuses the handshake, and is asked again.
    """
    version, was_answered = LATEST_MODERN_VERSION, True
    try:
        async with Deadline.after(_PROBE_SECONDS).limit():
            session.adopt(await _discover(session, version))
        return
    except TimeoutError:
        was_answered = False
    except MCPError as error:
        was_answered = error.code != REQUEST_TIMEOUT
        supported = _read_supported(error)
        if (common := _choose_version(supported)) is not None:
            session.adopt(await _discover(session, common))
            return
        if supported and not set(supported) & set(HANDSHAKE_PROTOCOL_VERSIONS):
            raise
    except (ValidationError, RuntimeError):  # the answer is none to `server/discover`, or names only legacy versions
        pass
    try:
        await session.initialize()
    except MCPError as error:
        if not _is_answer(error) or (was_answered and error.code != UNSUPPORTED_PROTOCOL_VERSION):
            raise
        session.adopt(await _discover(session, _choose_version(_read_supported(error)) or version))


async def _initialize(session: ClientSession, version: str) -> None:
    """Propose a version in the legacy handshake; the SDK proposes the newest."""
    parameters = InitializeRequestParams(
        protocol_version=version,
        capabilities=session._build_capabilities(version),  # pyright: ignore[reportPrivateUsage]
        client_info=session._client_info,  # pyright: ignore[reportPrivateUsage]
    )
    session.adopt(await session.send_request(InitializeRequest(params=parameters), InitializeResult))
    await session.send_notification(InitializedNotification())


async def _discover(session: ClientSession, version: str) -> DiscoverResult:
    return DiscoverResult.model_validate(await session.send_discover(version))


def _choose_version(supported: list[str]) -> str | None:
    """The newest version of the current protocol that both sides speak."""
    return next((version for version in reversed(MODERN_PROTOCOL_VERSIONS) if version in supported), None)


def _read_supported(error: MCPError) -> list[str]:
    """Return the versions that the refusal of a version names."""
    if error.code != UNSUPPORTED_PROTOCOL_VERSION:
        return []
    try:
        return UnsupportedProtocolVersionErrorData.model_validate(error.data).supported
    except ValidationError:
        return []


def _is_answer(error: MCPError) -> bool:
    """Whether the server sent this error; the SDK makes some itself."""
    return error.code != REQUEST_TIMEOUT and error.message != "Connection closed"
