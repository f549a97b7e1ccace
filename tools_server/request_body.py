"""Limits on request bodies, checked before the SDK decodes them."""

import json

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_runtime.request_body import BODY_METHODS, BodyRejected, check_body, read_body, replay_body
from tools_server.auth import is_definitions_path

_MAX_BYTES = 1024 * 1024
_MAX_ITEMS = 1_000
_TIMEOUT_SECONDS = 60.0
_MAX_DEFINITION_BYTES = 5 * 1024 * 1024
_MAX_DEFINITION_ITEMS = 50_000
"""Limits of definitions and OpenAPI documents, which only admins send."""


class RequestBodyMiddleware:
    """Reads request bodies, and rejects those that are too costly to decode.

    A body must also arrive in time.
    """

    def __init__(self, app: ASGIApp, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._app = app
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in BODY_METHODS:
            await self._app(scope, receive, send)
            return
        max_bytes, max_items = _MAX_BYTES, _MAX_ITEMS
        if is_definitions_path(scope["path"]):
            max_bytes, max_items = _MAX_DEFINITION_BYTES, _MAX_DEFINITION_ITEMS
        try:
            body = await read_body(scope, receive, max_bytes=max_bytes, timeout_seconds=self._timeout_seconds)
            if body:
                await check_body(body, max_items=max_items)
        except BodyRejected as error:
            await _send_rejection(send, error)
            return
        await self._app(scope, replay_body(body, receive), send)


async def _send_rejection(send: Send, error: BodyRejected) -> None:
    body = json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
