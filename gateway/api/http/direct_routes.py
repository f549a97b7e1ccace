"""Hot routes, called without FastAPI's handler. See docs/adr/0028."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn, cast

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.errors import build_expected_error
from gateway.api.http.request_context import STARTED_SCOPE_KEY
from gateway.domain.errors import ClientGone, GatewayError

_METHOD = "POST"
_JSON = b"application/json"
_MISSING_BODY: dict[str, Any] = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}


class _ReadRequest(Request):
    """Request whose body has been read."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        super().__init__(scope, receive, send)
        self._body = body


class DirectEndpoint:
    """The endpoint of a route, called as FastAPI would call it.

    It takes a body, headers and the request, and returns a `Response`.
    """

    def __init__(self, route: APIRoute) -> None:
        needs = route.dependant
        unsupported = (
            needs.path_params,
            needs.query_params,
            needs.cookie_params,
            needs.dependencies,
            needs.response_param_name,
        )
        assert len(needs.body_params) == 1, route.path
        assert not any(unsupported), route.path
        self._endpoint = cast(Callable[..., Awaitable[Response]], route.endpoint)
        self._body = needs.body_params[0]
        self._headers = [(field.alias.lower().encode(), field, field.default) for field in needs.header_params]
        self._request_name = needs.request_param_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _read_body(receive)
            request = _ReadRequest(scope, receive, send, body)
            response = await self._endpoint(**self._read_arguments(request, body))
            await response(scope, receive, send)
        except (GatewayError, RequestValidationError, HTTPException) as error:
            if STARTED_SCOPE_KEY in scope:
                raise
            await build_expected_error(Request(scope), error)(scope, receive, send)

    def _read_arguments(self, request: Request, data: bytes) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._request_name is not None:
            arguments[self._request_name] = request
        headers: dict[bytes, bytes] = dict(reversed(request.scope["headers"]))  # the first of several counts
        errors: list[dict[str, Any]] = []
        for name, field, default in self._headers:
            value = headers.get(name)
            if value is None:
                arguments[field.name] = default
                continue
            arguments[field.name], problems = field.validate(value.decode("latin-1"), loc=("header", field.alias))
            errors += problems
        body = _decode_body(data, headers.get(b"content-type", b"")) if data else None
        if data:
            arguments[self._body.name], problems = self._body.validate(body, loc=("body",))
        else:
            problems = [_MISSING_BODY]
        errors += problems
        if errors:
            raise RequestValidationError(errors, body=body)
        return arguments


class DirectRouteMiddleware:
    """Passes requests of hot routes to their endpoints.

    All others go to the application.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[tuple[str, APIRoute]]) -> None:
        self._app = app
        self._endpoints = {path: DirectEndpoint(route) for path, route in routes}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        endpoint: ASGIApp | None = None
        if scope["type"] == "http" and scope["method"] == _METHOD:
            endpoint = self._endpoints.get(scope["path"])
        return (endpoint or self._app)(scope, receive, send)


async def _read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def _decode_body(body: bytes, content_type: bytes) -> Any:
    """Decode a body of JSON.

    That of another media type stays as it is.
    """
    if content_type != _JSON:
        media_type = content_type.decode("latin-1").partition(";")[0].strip().lower()
        main_type, _, subtype = media_type.partition("/")
        if main_type != "application" or not (subtype == "json" or subtype.endswith("+json")):
            return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        _reject_json()


def _reject_json() -> NoReturn:
    raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": "JSON decode error", "input": {}}])
