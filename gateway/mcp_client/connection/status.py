"""State of one connection, and the events that other tasks wait for."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from mcp import Client

from gateway.common.logging import get_logger

log = get_logger(__name__)

ConnectionState = Literal["connecting", "up", "degraded", "needs_auth", "down", "disabled"]


class ConnectionStatus:
    """State of one connection, and its client while connected.

    Only the connection's own tasks write it; calls read it and wait for its events.
    """

    def __init__(self, server: str, on_change: Callable[[], None]) -> None:
        self._server = server
        self._on_change = on_change
        self.state: ConnectionState = "connecting"
        self.reason: str | None = None
        self.since = datetime.now(UTC)
        self.tool_count = 0
        self.token_problem: str | None = None
        """Reason why the last attempt had no token to send."""
        self.client: Client | None = None
        self.ended_event = asyncio.Event()
        """The session of `client` has ended; each session has its own."""
        self.available_event = asyncio.Event()
        """Calls may be sent."""
        self.attempted_event = asyncio.Event()
        """The first or a requested attempt to connect has ended.

        `retry_event` requests an attempt.
        """
        self.retry_event = asyncio.Event()
        """A caller asks for an attempt now."""
        self.broken_event = asyncio.Event()
        """The session must be closed.

        It broke, or the connection is to stop.
        """

    @property
    def is_available(self) -> bool:
        return self.available_event.is_set()

    @property
    def lacks_credentials(self) -> bool:
        """Whether the server refuses the gateway, or no token can be sent."""
        return self.state == "needs_auth"

    def set_connected(self, client: Client) -> None:
        """A session is open, and the server's tools are known."""
        self.client, self.ended_event = client, asyncio.Event()
        self.set_available()
        self.attempted_event.set()

    def set_available(self) -> None:
        """The server answers."""
        self._set_state("up")
        self.available_event.set()

    def set_unavailable(self, reason: str, state: ConnectionState = "down") -> None:
        """The server does not answer, or refuses the gateway."""
        self.available_event.clear()
        self._set_state(state, reason)

    def set_degraded(self, reason: str) -> None:
        """Calls work, but the tool list may be outdated."""
        self._set_state("degraded", reason)

    def set_recovered(self) -> None:
        """The tool list is current again."""
        self._set_state("up")

    def set_disconnected(self) -> None:
        """The session is closed. The state stays until its reason is known."""
        self.client = None
        self.ended_event.set()
        self.available_event.clear()

    def report_lost(self, client: Client) -> None:
        """Close this client's session, unless another one has replaced it.

        Calls wait for the next session.
        """
        if self.client is client:
            self.available_event.clear()
            self.broken_event.set()

    def _set_state(self, state: ConnectionState, reason: str | None = None) -> None:
        if state == self.state:
            if reason != self.reason:
                self.reason = reason
                log.info("mcp_server_reason", server=self._server, state=state, reason=reason)
            return
        self.state, self.reason, self.since = state, reason, datetime.now(UTC)
        write = log.info if state == "up" else log.warning
        write("mcp_server", server=self._server, state=state, reason=reason, tools=self.tool_count)
        self._on_change()
