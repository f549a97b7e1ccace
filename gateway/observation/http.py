"""HTTP requests, from the first header to the end of the response."""

import time
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.request_context import ERROR_SCOPE_KEY, STARTED_SCOPE_KEY
from gateway.api.security.permissions import PUBLIC_DOCUMENTS, ROUTES, find_permission
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.ports.observer import Observer, Span
from gateway_runtime.telemetry.trace_context import read_trace_headers

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNKNOWN_ROUTE = "unmatched"
_STREAM_CLASSES = ("chat", "mcp")
_FORMATS = {
    "/v1/chat/completions": "openai_chat",
    "/v1/completions": "openai_completions",
    "/v1/responses": "openai_responses",
    "/v1/messages": "anthropic",
    "/mcp": "mcp",
}
_KNOWN_PATHS = frozenset(path for _, path in (*ROUTES, *PUBLIC_DOCUMENTS) if "{" not in path)
_UNTRACED = frozenset({"/health", "/ready", "/metrics"})
"""Paths that machines ask all the time."""

request_format: ContextVar[str] = ContextVar("request_format", default="other")
"""Wire format of the request that this task serves."""


class ObservationMiddleware:
    """Opens the span of a request and counts the request.

    It does not see the response: the middleware inside notes the status in the scope.
    """

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer
        self._open_requests = dict.fromkeys(_STREAM_CLASSES, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, started_at = scope["path"], time.perf_counter()
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        permission = find_permission(scope["method"], path)
        kind = permission.route_class if permission is not None else ""
        request_format.set(find_format(path))
        self._count_open(kind, 1)
        try:
            if path in _UNTRACED:
                await self._app(scope, receive, send)
            else:
                await self._run_traced(method, scope, receive, send)
        finally:
            self._count_open(kind, -1)
            status = str(scope.get(STARTED_SCOPE_KEY) or "")
            seconds, route = time.perf_counter() - started_at, find_route(scope, path)
            self._observer.record_value(f.HTTP_DURATION, seconds, method, scope["scheme"], route, status)
            if (code := scope.get(ERROR_SCOPE_KEY)) is not None:
                self._observer.increase_counter(f.REFUSALS, 1, code, status)

    async def _run_traced(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        path, attributes = scope["path"], {n.HTTP_METHOD: method, n.HTTP_SCHEME: scope["scheme"]}
        parent = read_trace_headers(scope)
        with self._observer.open_span(method, attributes, kind="server", parent=parent) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                _complete_span(span, method, scope, path)

    def _count_open(self, kind: str, change: int) -> None:
        if kind in self._open_requests:
            self._open_requests[kind] += change
            self._observer.set_gauge(f.STREAMS, self._open_requests[kind], kind)


def _complete_span(span: Span, method: str, scope: Scope, path: str) -> None:
    status, route = int(scope.get(STARTED_SCOPE_KEY, 0)), find_route(scope, path)
    attributes: dict[str, str | int] = {n.HTTP_ROUTE: route}
    if status:
        attributes[n.HTTP_STATUS] = status
    span.set_attributes(attributes)
    span.rename(f"{method} {route}")
    if status >= 500 or not status:
        span.fail(scope.get(ERROR_SCOPE_KEY) or str(status))


def find_route(scope: Scope, path: str) -> str:
    """Return the template of the route that a request has matched.

    Paths with values of clients would be labels without bound.
    """
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return path if path in _KNOWN_PATHS else _UNKNOWN_ROUTE


def find_format(path: str) -> str:
    """Return the wire format of a path."""
    path = path.removeprefix("/openai")
    if (name := _FORMATS.get(path)) is not None:
        return name
    if path.startswith("/api/v1/"):
        return "native"
    if path.startswith("/mcp/"):
        return "mcp"
    if path.startswith("/v1/responses"):
        return "openai_responses"
    return "legacy" if path == "/stream" or path.startswith("/api/") else "other"
