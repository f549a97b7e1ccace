"""Request ids, security headers and the access log. Pure ASGI, see docs/adr/0005."""

import re
import time
from collections.abc import Awaitable

import uuid_utils
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.agent.service import TurnHandle
from gateway.common.logging import get_logger, request_id
from gateway.wire.sse import WRITE_SCOPE_KEY
from gateway_runtime.http_protocol import get_security_headers, remove_last_slash

log = get_logger("gateway.access")

HEADERS_SCOPE_KEY = "gateway.headers"
"""Scope key of a list of additional response headers.

Middleware and routes append headers to it.
"""
STARTED_SCOPE_KEY = "gateway.begun"
"""Scope key of the response's status, present once the response has begun."""
TURN_SCOPE_KEY = "gateway.turn"
"""Scope key of the `TurnHandle` that a request has started or found."""
ERROR_SCOPE_KEY = "gateway.error_code"
"""Scope key of the code of an error response."""
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
"""Pages with a policy of their own."""
ANTHROPIC_PREFIX = "/v1/messages"
"""Start of the paths whose clients read the header `request-id`."""
_DEBUG_LEVEL_PATHS = ("/health", "/ready")


class RequestContextMiddleware:
    """Sets the request id, adds response headers, and writes the access log.

    A client's `X-Request-ID` is used if it is safe to log; else a new id is generated. A path with a last slash is the
    path without it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        remove_last_slash(scope)
        client_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        current_id = client_id if _SAFE_ID.fullmatch(client_id) else str(uuid_utils.uuid7()).encode()
        token = request_id.set(current_id.decode())
        started_at = time.perf_counter()
        status = 0
        added = [(b"request-id", current_id)] if scope["path"].startswith(ANTHROPIC_PREFIX) else []
        scope[HEADERS_SCOPE_KEY] = added
        scope[WRITE_SCOPE_KEY] = send
        security_headers = get_security_headers(over_tls=scope["scheme"] == "https", page=scope["path"] in _PAGES)

        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])  # the MCP SDK passes an enum, which the log would show as its repr
                scope[STARTED_SCOPE_KEY] = status
                present = {name.lower() for name, _ in message["headers"]}
                missing = [header for header in security_headers if header[0] not in present]
                message["headers"] = [*message["headers"], (b"x-request-id", current_id), *added, *missing]
            return send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            del scope[WRITE_SCOPE_KEY]  # else the scope would be part of a reference cycle
            duration_ms = round((time.perf_counter() - started_at) * 1000, 2)
            write_log = log.debug if scope["path"] in _DEBUG_LEVEL_PATHS else log.info
            # Not left in the scope, which a kept connection holds until its next request.
            turn: TurnHandle | None = scope.pop(TURN_SCOPE_KEY, None)
            fields = turn.end_request() if turn is not None else {}
            write_log(
                "request", method=scope["method"], path=scope["path"], status=status, duration_ms=duration_ms, **fields
            )
            request_id.reset(token)
