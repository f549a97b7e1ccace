"""Limits on the size, arrival time and encoding of request bodies."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_UNCOMPRESSED = (b"", b"identity")


class BodyLimitMiddleware:
    """Rejects request bodies that are too large, too slow or compressed.

    A body over `max_bytes` is rejected by its declared length, else when it exceeds the limit. A body must arrive
    within `timeout_seconds` after the application began to read it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float = 60.0) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared_length = headers.get(b"content-length", b"0")
        if declared_length.isdigit() and int(declared_length) > self._max_bytes:
            receive = _raise_on_receive(self._make_too_large_error())
        elif headers.get(b"content-encoding", b"identity").lower() not in _UNCOMPRESSED:
            receive = _raise_on_receive(
                HTTPException(415, "Compressed bodies are not supported: send the body without Content-Encoding.")
            )
        await self._app(scope, self._count_bytes(receive), send)

    def _make_too_large_error(self) -> HTTPException:
        # An HTTPException: FastAPI turns any other error that is raised while it reads a body into a 400.
        return HTTPException(413, f"The body is larger than the limit of {self._max_bytes:,} bytes.")

    def _count_bytes(self, receive: Receive) -> Receive:
        total = 0
        complete = False
        deadline: float | None = None

        async def receive_counted() -> Message:
            nonlocal total, complete, deadline
            if complete:
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self._timeout_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The body did not arrive within {self._timeout_seconds:g} seconds.") from None
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self._max_bytes:
                    raise self._make_too_large_error()
                complete = not message.get("more_body", False)
            return message

        return receive_counted


def _raise_on_receive(error: HTTPException) -> Receive:
    # Raised inside the application, so that its error handlers answer.
    async def receive_error() -> Message:
        raise error

    return receive_error
