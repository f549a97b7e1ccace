"""Sessions of the legacy protocol, which expire and are bounded in number."""

from collections.abc import Callable, Iterable
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthorizationContext, authorization_context
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from gateway.common.logging import get_logger
from gateway.config import Settings
from gateway.domain.errors import Overloaded, RateLimited
from gateway_runtime.mcp_sessions import find_idle_session, is_resumption, refuse_resumption

log = get_logger(__name__)

_RETRY_SECONDS = 30.0


class LegacySessionManager(StreamableHTTPSessionManager):
    """The SDK's session manager with bounds per user and per worker.

    A session is idle while none of its requests is in progress; an open GET stream is one. A new session beyond a
    maximum replaces the least recently used idle one, whose host then opens another: status 404 tells it to.
    `on_end` is called with the id of each session that has ended.
    """

    def __init__(
        self,
        app: Server[Any],
        settings: Settings,
        on_end: Callable[[str], None],
    ) -> None:
        super().__init__(
            app,
            # `SecurityMiddleware` has checked host and origin, in any letter case.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            session_idle_timeout=settings.mcp_session_idle_seconds,
            max_request_body_size=settings.max_body_bytes,
            max_sessions=None,
        )
        self._max_total = settings.mcp_max_sessions
        self._max_per_user = settings.mcp_max_user_sessions
        self._on_end = on_end

    def __len__(self) -> int:
        """Number of open sessions."""
        return len(self._server_instances)

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Open a session.

        Raises:
            RateLimited: all sessions of this user are in use.
            Overloaded: all sessions of this worker are in use.
        """
        assert requestor is not None
        user = requestor["subject"]
        own = [session for session, owner in self._session_owners.items() if owner["subject"] == user]
        if len(own) >= self._max_per_user and not self._end_idle_session(own):
            message = f"You have {len(own)} open MCP sessions, which is the maximum: close some of them."
            raise RateLimited(message, retry_after=_RETRY_SECONDS)
        if len(self) >= self._max_total and not self._end_idle_session(self._server_instances):
            raise Overloaded("Too many MCP sessions are open. Try again shortly.", retry_after=_RETRY_SECONDS)
        return super()._admit_session(requestor)

    def _end_idle_session(self, sessions: Iterable[str]) -> bool:
        """End the least recently used idle session.

        Return False if none of `sessions` is idle.
        """
        session = find_idle_session(sessions, self._server_instances)
        if session is None:
            return False
        log.info("mcp_session_replaced", sessions=len(self))
        transport = self._server_instances.pop(session)
        self._session_owners.pop(session, None)
        assert transport.idle_scope is not None
        transport.idle_scope.cancel()  # its task then ends, and discards it
        return True

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, unless it resumes a stream of an open session."""
        if is_resumption(scope) and self._owns_session(scope):
            await refuse_resumption(send)
        else:
            await super()._handle_stateful_request(scope, receive, send)

    def _owns_session(self, scope: Scope) -> bool:
        """Return whether a request names an open session of its user."""
        session = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        return session is not None and self._session_owners.get(session) == authorization_context(scope["user"])

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        self._on_end(session_id)
        await super()._discard_session(session_id, transport)
