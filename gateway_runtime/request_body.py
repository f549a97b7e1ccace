"""Reading a request's body within limits, before anything decodes it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import nullcontext
from typing import Any

from gateway_runtime.json_limits import JsonLimitExceeded, check_json, check_mcp_message

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_ARRIVED_SCOPE_KEY = "gateway_runtime.body_arrived"
"""Scope key that `HttpProtocol` adds when the whole body has arrived."""
BODY_METHODS = ("POST", "PUT", "PATCH")
_UNCOMPRESSED = (b"", b"identity")
_LARGE_BODY_BYTES = 64 * 1024


class BodyRejected(Exception):
    """Error of a body: HTTP status, error code and public message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def read_body(
    scope: MutableMapping[str, Any], receive: Receive, *, max_bytes: int, timeout_seconds: float
) -> bytes | None:
    """Read a whole body; None: the client disconnected.

    Raises:
        BodyRejected: the body is too large by its declared length or by its bytes, compressed, or too slow.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _make_too_large(max_bytes)
    reject_compressed(headers)
    body: bytes | bytearray = b""
    try:
        async with nullcontext() if BODY_ARRIVED_SCOPE_KEY in scope else asyncio.timeout(timeout_seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > max_bytes:
                    raise _make_too_large(max_bytes)
                if not body:
                    body = chunk
                elif chunk:  # not a list of chunks, which takes fifty bytes for one of two
                    body = body if isinstance(body, bytearray) else bytearray(body)
                    body += chunk
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        message = f"The body did not arrive within {timeout_seconds:g} seconds."
        raise BodyRejected(408, "request_timeout", message) from None
    return bytes(body)


def reject_compressed(headers: list[tuple[bytes, bytes]]) -> None:
    """Raises:
    BodyRejected: the body is compressed.
    """
    for name, value in headers:
        if name == b"content-encoding" and value.lower() not in _UNCOMPRESSED:
            message = "Compressed bodies are not supported: send the body without Content-Encoding."
            raise BodyRejected(415, "unsupported_encoding", message)


def _make_too_large(max_bytes: int) -> BodyRejected:
    return BodyRejected(413, "payload_too_large", f"The body is larger than the limit of {max_bytes:,} bytes.")


async def check_body(body: bytes, *, max_items: int, mcp: bool = False) -> None:
    """Check the number of items and levels of a JSON body.

    A large body is decoded in another pass of the event loop.

    Raises:
        BodyRejected: the body has too many items or levels, or no encoding of JSON.
    """
    try:
        items = check_json(body, max_items=max_items)
        if mcp:
            check_mcp_message(body, items)
    except JsonLimitExceeded as error:
        raise BodyRejected(422, "invalid_request", str(error)) from None
    except UnicodeDecodeError:
        raise BodyRejected(422, "invalid_request", "The body is not valid JSON.") from None
    if len(body) > _LARGE_BODY_BYTES:
        await asyncio.sleep(0)


def replay_body(body: bytes | None, receive: Receive) -> Receive:
    """Return a `receive` that passes on the body in one message.

    Without a body, it reports the disconnect.
    """
    messages: list[Message] = [
        {"type": "http.disconnect"} if body is None else {"type": "http.request", "body": body, "more_body": False}
    ]

    async def receive_replayed() -> Message:
        return messages.pop() if messages else await receive()

    return receive_replayed
