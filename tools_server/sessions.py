"""Sessions of the legacy protocol, bounded per user and in all."""

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import structlog
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from gateway_runtime.mcp_sessions import find_idle_session, is_resumption, refuse_resumption
from tools_server.auth import USER_SCOPE_KEY
from tools_server.config import Settings

log = structlog.stdlib.get_logger(__name__)

_request_user: ContextVar[str] = ContextVar("tools_server_request_user")


class UserSessionManager(StreamableHTTPSessionManager):
    """The SDK's session manager with bounds per user and in all.

    A new session beyond a maximum replaces the least recently used idle one; if all are in use, it is refused. A
    session counts for the user who opened it. Others may use it: the users of a gateway share its session.
    """

    def __init__(self, app: Server[Any], settings: Settings) -> None:
        super().__init__(
            app,
            # `RequestOriginMiddleware` has checked host and origin, in any letter case.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            session_idle_timeout=settings.tools_server_session_idle_seconds,
            max_sessions=settings.tools_server_max_sessions,
        )
        self._max_total = settings.tools_server_max_sessions
        self._max_per_user = settings.tools_server_max_user_sessions
        self._user_by_session: dict[str, str] = {}

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; a session that it opens belongs to its user."""
        _request_user.set(scope[USER_SCOPE_KEY])
        if is_resumption(scope) and Headers(scope=scope).get(MCP_SESSION_ID_HEADER) in self._server_instances:
            await refuse_resumption(send)
        else:
            await super()._handle_stateful_request(scope, receive, send)

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Open a session. None: the request is refused."""
        user = _request_user.get()
        own = [session for session, owner in self._user_by_session.items() if owner == user]
        if len(own) >= self._max_per_user and not self._end_idle_session(own):
            log.warning("mcp_session_refused", sessions=len(own), limit="user")
            return None
        if len(self._server_instances) >= self._max_total and not self._end_idle_session(self._server_instances):
            return None
        transport = super()._admit_session(requestor)
        if transport is not None and transport.mcp_session_id is not None:
            self._user_by_session[transport.mcp_session_id] = user
        return transport

    def _end_idle_session(self, sessions: Iterable[str]) -> bool:
        session = find_idle_session(sessions, self._server_instances)
        if session is None:
            return False
        log.info("mcp_session_replaced", sessions=len(self._server_instances))
        transport = self._server_instances.pop(session)
        self._user_by_session.pop(session, None)
        assert transport.idle_scope is not None
        transport.idle_scope.cancel()  # its task then ends, and discards it
        return True

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        self._user_by_session.pop(session_id, None)
        await super()._discard_session(session_id, transport)
