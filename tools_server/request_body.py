"""Limits on request bodies, checked before the SDK decodes them."""

import json

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_runtime.request_body import BODY_METHODS, BodyRejected, check_body, read_body, replay_body

_MAX_BYTES = 1024 * 1024
_MAX_ITEMS = 1_000
_TIMEOUT_SECONDS = 60.0


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
        try:
            body = await read_body(
                receive, scope["headers"], max_bytes=_MAX_BYTES, timeout_seconds=self._timeout_seconds
            )
            if body:
                await check_body(body, max_items=_MAX_ITEMS)
        except BodyRejected as error:
            await _send_rejection(send, error)
            return
        await self._app(scope, replay_body(body, receive), send)


async def _send_rejection(send: Send, error: BodyRejected) -> None:
    body = json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
