"""Limits the size of what an MCP or authorization server answers."""

import json
import re
from collections.abc import AsyncGenerator, Callable

import httpx2
from mcp.types import PARSE_ERROR

from gateway.common.logging import get_logger

log = get_logger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of a response body and of an event of a stream."""
TOO_LARGE = "the answer is too large"
_EVENT_STREAM = "text/event-stream"
_EDGE_LENGTH = 200
_RESPONSE_ID = r'"jsonrpc":"2\.0","id":(\d+)'
_ID_AT_START = re.compile(r"\{" + _RESPONSE_ID + r',"(?:result|error)"')
_ID_AT_END = re.compile(_RESPONSE_ID + r"\}$")
_BETWEEN_TOKENS = re.compile(r"\s+(?:data:)?")
"""White space, and the start of the lines of an event."""


class AnswerTooLarge(httpx2.StreamError):
    """The body of an answer exceeds its limit.

    The SDK reports a `StreamError` as the result of its own request; another error would end the connection.
    """


class MessageBuffer:
    """The text of one message, in parts.

    Of a message that exceeds `MAX_MESSAGE_BYTES` only the start and the end stay.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.clear()

    def clear(self) -> None:
        self._parts.clear()
        self._length = 0
        self.start = self.end = ""

    def append(self, text: str) -> None:
        self._length += len(text)
        if not self.is_too_large:
            self._parts.append(text)
            return
        if not self.start:
            self.start = "".join([*self._parts, text[:_EDGE_LENGTH]])[:_EDGE_LENGTH]
            self._parts.clear()
        self.end = (self.end + text)[-_EDGE_LENGTH:]

    @property
    def is_too_large(self) -> bool:
        return self._length > MAX_MESSAGE_BYTES

    def join(self) -> str:
        """Join the parts of a message that is not too large."""
        return "".join(self._parts)


def make_too_large_error(start: str, end: str) -> str | None:
    """Make the error in place of a response that is too large.

    `start` and `end` are its edges, one of which has the id of its request. None: there is no such id.
    """
    start, end = (_BETWEEN_TOKENS.sub("", f"\n{edge}") for edge in (start, end))
    found = _ID_AT_START.match(start) or _ID_AT_END.search(end)
    log.warning("mcp_message_too_large", has_id=found is not None)
    if found is None:
        return None
    return json.dumps({"jsonrpc": "2.0", "id": int(found[1]), "error": {"code": PARSE_ERROR, "message": TOO_LARGE}})


class SizeLimitingTransport(httpx2.AsyncBaseTransport):
    """Stops reading a response body that exceeds `max_bytes`.

    Decompressed bytes count, because a small body may decompress to a large one. A successful answer raises
    `make_error()`; any other is truncated, since its status is its meaning. Successful event streams are not limited
    here: they live long, and the SDK limits each of their events.
    """

    def __init__(
        self, inner: httpx2.AsyncBaseTransport, max_bytes: int, make_error: Callable[[str], Exception] = AnswerTooLarge
    ) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._make_error = make_error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.is_success and response.headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
            return response
        error = self._make_error(TOO_LARGE) if response.is_success else None
        headers = response.headers.copy()
        for name in ("content-encoding", "content-length"):  # they describe the body before it is decompressed
            headers.pop(name, None)
        stream = _SizeLimitingStream(response, self._max_bytes, error)
        return httpx2.Response(
            response.status_code, headers=headers, stream=stream, request=request, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _SizeLimitingStream(httpx2.AsyncByteStream):
    """A decompressed body, until it exceeds its limit."""

    def __init__(self, response: httpx2.Response, max_bytes: int, error: Exception | None) -> None:
        self._response = response
        self._remaining = max_bytes
        self._error = error

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for chunk in self._response.aiter_bytes():
            self._remaining -= len(chunk)
            if self._remaining < 0:
                if self._error is not None:
                    raise self._error
                return
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()
