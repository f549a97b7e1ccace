"""Request ids and the access log. Pure ASGI, and cheap for each chunk: it runs for every token."""

import re
import time
from collections.abc import Awaitable

import uuid_utils
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.common.logging import get_logger, request_id
from gateway.wire.sse import WRITE_SCOPE_KEY

log = get_logger("gateway.access")

HEADERS_SCOPE_KEY = "gateway.headers"
"""Where in a request's scope those behind put headers for its answer, whoever gives it."""
STARTED_SCOPE_KEY = "gateway.begun"
"""In the scope of a request whose answer has begun."""
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
_SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_API_SAFETY = (*_SAFETY, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
_OVER_TLS = (b"strict-transport-security", b"max-age=31536000")
_QUIET = ("/health", "/ready")


def safety_headers(*, over_tls: bool, page: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """What every answer carries, so that browsers neither guess nor embed it."""
    safety = _SAFETY if page else _API_SAFETY
    return (*safety, _OVER_TLS) if over_tls else safety


class RequestContextMiddleware:
    """Takes `X-Request-ID` if it is safe to log, else makes one; returns it; logs each request at its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        current = given if _SAFE_ID.fullmatch(given) else str(uuid_utils.uuid7()).encode()
        token = request_id.set(current.decode())
        started = time.perf_counter()
        status = 0
        added: list[tuple[bytes, bytes]] = []
        scope[HEADERS_SCOPE_KEY] = added
        scope[WRITE_SCOPE_KEY] = send
        safety = safety_headers(over_tls=scope["scheme"] == "https", page=scope["path"] in _PAGES)

        def with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                scope[STARTED_SCOPE_KEY] = True
                has = {name.lower() for name, _ in message["headers"]}
                missing = [header for header in safety if header[0] not in has]
                message["headers"] = [*message["headers"], (b"x-request-id", current), *added, *missing]
            return send(message)

        try:
            await self._app(scope, receive, with_id)
        finally:
            del scope[WRITE_SCOPE_KEY]  # which leads back to the scope
            duration_ms = round((time.perf_counter() - started) * 1000, 2)
            say = log.debug if scope["path"] in _QUIET else log.info
            say("request", method=scope["method"], path=scope["path"], status=status, duration_ms=duration_ms)
            request_id.reset(token)
