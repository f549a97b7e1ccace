"""Bounds on what a request may bring, before anything reads it."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PLAIN = (b"", b"identity")


class BodyLimitMiddleware:
    """Refuses bodies over `most` bytes: by their declared length at once, else when they grow past it; those that are
    not there within `timeout_seconds` of being asked for; and compressed ones."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float = 60.0) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            receive = _raise_on_receive(self._payload_too_large())
        elif headers.get(b"content-encoding", b"identity").lower() not in _PLAIN:
            receive = _raise_on_receive(
                HTTPException(415, "A compressed body is not read: send it without Content-Encoding.")
            )
        await self._app(scope, self._count_bytes(receive), send)

    def _payload_too_large(self) -> HTTPException:
        """FastAPI lets this one through while it reads a body; any other error becomes a 400 there."""
        return HTTPException(413, f"The body is larger than the {self._max_bytes:,} bytes that a request may have.")

    def _count_bytes(self, receive: Receive) -> Receive:
        total = 0
        whole = False
        deadline: float | None = None

        async def counted() -> Message:
            nonlocal total, whole, deadline
            if whole:
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
                    raise self._payload_too_large()
                whole = not message.get("more_body", False)
            return message

        return counted


def _raise_on_receive(error: HTTPException) -> Receive:
    """Raised inside the application, so that its error handlers answer."""

    async def refuse() -> Message:
        raise error

    return refuse
