"""Spans and durations of HTTP requests to a server with few paths."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway_runtime.telemetry.families import LONG_SECONDS, MetricFamily
from gateway_runtime.telemetry.observer import Telemetry
from gateway_runtime.telemetry.trace_context import read_trace_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNOBSERVED = ("/health",)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


FAMILY = MetricFamily(
    "http.server.request.duration",
    "histogram",
    "HTTP requests, until the end of their response.",
    ("http.request.method", "url.scheme", "http.route", "http.response.status_code"),
    "s",
    LONG_SECONDS,
)


class RequestTelemetryMiddleware:
    """Opens a span for each request, and measures it.

    `paths` are those that its name may have.
    """

    def __init__(self, app: AsgiApp, telemetry: Telemetry, paths: frozenset[str]) -> None:
        self._app = app
        self._telemetry = telemetry
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNOBSERVED:
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._paths else "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "http.route": route, "url.scheme": scope["scheme"]}
        started_at, status = time.perf_counter(), ""
        with self._telemetry.open_span(
            f"{method} {route}", attributes, kind="server", parent=read_trace_headers(scope)
        ) as span:

            def send_noting_status(message: Message) -> Awaitable[None]:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(int(message["status"]))
                    span.set_attributes({"http.response.status_code": int(status)})
                    if status >= "500":
                        span.fail(status)
                return send(message)

            try:
                await self._app(scope, receive, send_noting_status)
            finally:
                seconds = time.perf_counter() - started_at
                self._telemetry.record_value(FAMILY.name, seconds, method, scope["scheme"], route, status)
