"""Limits on the bodies of requests, checked before a route decodes them."""

import codecs
import json
import re

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.errors import error_response
from gateway.api.security.permissions import PERMISSION_SCOPE_KEY, RoutePermission
from gateway.config import Settings
from gateway.domain.messages import JSON_DECODE_ERRORS
from gateway_runtime.request_body import BODY_METHODS, BodyRejected, check_body, read_body, replay_body

_CONTENT_TYPE = b"content-type"
_JSON_HEADER = (_CONTENT_TYPE, b"application/json")
_UNDECLARED_TYPES = (b"", b"application/x-www-form-urlencoded", b"text/plain", b"application/octet-stream")
"""Media types that programs such as `curl -d` declare for JSON."""
_LEADING_BYTES = 64
_TOO_LARGE = 413
MAX_SMALL_BODY_BYTES = 256 * 1024
"""Maximum of bodies that start no turn and call no tool."""
# As an escape or as bytes that are not valid UTF-8.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


class RequestBodyMiddleware:
    """Reads request bodies and rejects those that are too costly to decode.

    Bytes, items and depth are bounded: decoding and validating would otherwise take seconds and gigabytes. A body must
    arrive within `timeout_seconds`. A lone surrogate (`"\\ud800"`), which Python decodes, is invalid JSON: Postgres,
    MCP servers and UTF-8 encoders reject it. A JSON body without a Content-Type, or with that of a form, is read as
    JSON, except at `/mcp`. That helps no web page: the origin has been checked, and credentials are in headers.
    """

    def __init__(self, app: ASGIApp, settings: Settings, timeout_seconds: float = 60.0) -> None:
        self._app = app
        self._max_turn_bytes = settings.max_body_bytes
        self._max_tool_bytes = min(settings.max_body_bytes, settings.max_tool_body_bytes)
        self._max_small_bytes = min(settings.max_body_bytes, MAX_SMALL_BODY_BYTES)
        self._max_items = settings.max_body_items
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in BODY_METHODS:
            await self._app(scope, receive, send)
            return
        permission: RoutePermission | None = scope.get(PERMISSION_SCOPE_KEY)
        if permission is not None and permission.upload:
            await self._app(scope, receive, send)  # the route reads it, piece by piece
            return
        max_bytes, setting = self._get_limit(permission)
        try:
            body = await read_body(scope, receive, max_bytes=max_bytes, timeout_seconds=self._timeout_seconds)
            if body:
                is_mcp = permission is not None and permission.route_class == "mcp"
                await check_body(body, max_items=self._max_items, mcp=is_mcp)
                _reject_lone_surrogates(body)
                if not is_mcp:
                    _declare_json(scope, body)
        except BodyRejected as error:
            message = error.message
            if error.status == _TOO_LARGE and setting is not None:
                message = f"{message.removesuffix('.')} ({setting})."
            response = error_response(Request(scope), error.status, error.code, message)
            await response(scope, receive, send)
            return
        await self._app(scope, replay_body(body, receive), send)

    def _get_limit(self, permission: RoutePermission | None) -> tuple[int, str | None]:
        """Return the bytes allowed, and the limit's setting, if any."""
        if permission is None:
            return self._max_small_bytes, None
        if permission.starts_turn or permission.long_body:
            return self._max_turn_bytes, "MAX_BODY_BYTES"
        return (
            (self._max_tool_bytes, "MAX_TOOL_BODY_BYTES")
            if permission.area == "tools"
            else (self._max_small_bytes, None)
        )


def _declare_json(scope: Scope, body: bytes) -> None:
    """Declare a body that looks like JSON as JSON.

    A declared media type other than those of `_UNDECLARED_TYPES` stays.
    """
    if _JSON_HEADER in scope["headers"]:
        return
    if body[:_LEADING_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b"["):
        return
    declared = [value for name, value in scope["headers"] if name == _CONTENT_TYPE]
    if all(value.partition(b";")[0].strip().lower() in _UNDECLARED_TYPES for value in declared):
        others = [header for header in scope["headers"] if header[0] != _CONTENT_TYPE]
        scope["headers"] = [*others, _JSON_HEADER]


def _reject_lone_surrogates(body: bytes) -> None:
    # These searches take a tenth of the pattern's time.
    if b"\\ud" not in body and b"\\uD" not in body and b"\xed" not in body and b"\x00" not in body:
        return
    if b"\x00" in body or _SURROGATE.search(body):
        try:
            msgspec.json.decode(body.decode(json.detect_encoding(body)))
        except JSON_DECODE_ERRORS:
            raise BodyRejected(422, "invalid_request", "The body is not valid JSON.") from None
