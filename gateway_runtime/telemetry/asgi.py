"""Spans of HTTP requests, for a server with few fixed paths."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway_runtime.telemetry.trace_context import read_trace_headers
from gateway_runtime.telemetry.tracing import Tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNTRACED = ("/health",)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TracingMiddleware:
    """Opens a span for each request.

    `paths` are those that its name may have.
    """

    def __init__(self, app: AsgiApp, tracing: Tracing, paths: frozenset[str]) -> None:
        self._app = app
        self._tracing = tracing
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._paths else "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "http.route": route, "url.scheme": scope["scheme"]}
        with self._tracing.open_span(
            f"{method} {route}", attributes, kind="server", parent=read_trace_headers(scope)
        ) as span:

            def send_noting_status(message: Message) -> Awaitable[None]:
                if message["type"] == "http.response.start":
                    span.set_attributes({"http.response.status_code": int(message["status"])})
                    if message["status"] >= 500:
                        span.fail(str(int(message["status"])))
                return send(message)

            await self._app(scope, receive, send_noting_status)
