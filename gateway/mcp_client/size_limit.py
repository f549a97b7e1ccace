"""Limits the size of what an MCP or authorization server answers."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, AnyStr, Generic

import httpx2
from mcp.types import PARSE_ERROR

from gateway.common.logging import get_logger

log = get_logger(__name__)

DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Limit of a response body, an event and a command's line."""
TOO_LARGE = "the answer is too large"
_EVENT_STREAM = "text/event-stream"
_EDGE_LENGTH = 200
_MAX_SMALL_PARTS = 256
_VERSION, _ID, _OUTCOME = r'"jsonrpc":"2\.0"', r'"id":"?(\d+)"?', r'"(?:result|error)":'
_ID_AT_START = re.compile(rf"\{{(?:{_VERSION},)?{_ID},(?:{_VERSION},)?{_OUTCOME}")
_OUTCOME_AT_START = re.compile(rf"\{{(?:{_VERSION},)?{_OUTCOME}")
_ID_AT_END = re.compile(rf"(?<!\\){_ID}(?:,{_VERSION})?\}}$")
_BETWEEN_TOKENS = re.compile(r"\s+(?:data:)?")
"""White space, and the start of the lines of an event."""


class AnswerTooLarge(httpx2.StreamError):
    """The body of an answer exceeds its limit.

    The SDK reports a `StreamError` as the result of its own request; another error would end the connection.
    """


class MessageBuffer(Generic[AnyStr]):
    """The text or the bytes of one message, in parts.

    Of a message longer than `max_length` only the start and the end stay.
    """

    def __init__(self, max_length: int, empty: AnyStr) -> None:
        self._max_length = max_length
        self._empty: Any = empty
        self._parts: list[AnyStr] = []
        self._small_parts: list[AnyStr] = []
        self.clear()

    def clear(self) -> None:
        self._parts.clear()
        self._small_parts.clear()
        self.length = 0
        self.start: AnyStr = self._empty
        self.end: AnyStr = self._empty

    def append(self, text: AnyStr) -> None:
        self.length += len(text)
        if not self.is_too_large:
            self._small_parts.append(text)
            if len(self._small_parts) >= _MAX_SMALL_PARTS:  # a part of one byte would take sixty
                self._parts.append(self._empty.join(self._small_parts))
                self._small_parts.clear()
            return
        if not self.start:
            self._small_parts.append(text[:_EDGE_LENGTH])
            self.start = self.join()[:_EDGE_LENGTH]
            self._parts.clear()
            self._small_parts.clear()
        self.end = (self.end + text)[-_EDGE_LENGTH:]

    @property
    def is_too_large(self) -> bool:
        return self.length > self._max_length

    def join(self) -> AnyStr:
        """Join the parts of a message that is not too large."""
        return self._empty.join([*self._parts, *self._small_parts])


def find_response_id(start: str, end: str) -> int | None:
    """Return the id of the request that a message answers.

    `start` and `end` are the edges of the message, one of which has the id. None: there is none, or it is no answer.
    """
    start, end = (_BETWEEN_TOKENS.sub("", f"\n{edge}") for edge in (start, end))
    found = _ID_AT_START.match(start)
    if found is None and _OUTCOME_AT_START.match(start):
        found = _ID_AT_END.search(end)
    return None if found is None else int(found[1])


def make_too_large_error(start: str, end: str) -> str | None:
    """Make the error in place of a response that is too large.

    None: its edges do not show the request that it answers.
    """
    request_id = find_response_id(start, end)
    log.warning("mcp_message_too_large", has_id=request_id is not None)
    if request_id is None:
        return None
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": PARSE_ERROR, "message": TOO_LARGE}})


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
        headers, body = response.headers, response.stream
        if "content-encoding" not in headers and isinstance(body, httpx2.AsyncByteStream):
            response.stream = _SizeLimitingStream(body, body.aclose, self._max_bytes, error)
            return response
        headers = headers.copy()
        for name in ("content-encoding", "content-length"):  # they describe the body before it is decompressed
            headers.pop(name, None)
        stream = _SizeLimitingStream(response.aiter_bytes(), response.aclose, self._max_bytes, error)
        return httpx2.Response(
            response.status_code, headers=headers, stream=stream, request=request, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _SizeLimitingStream(httpx2.AsyncByteStream):
    """A decompressed body, until it exceeds its limit."""

    def __init__(
        self,
        chunks: AsyncIterable[bytes],
        close: Callable[[], Awaitable[None]],
        max_bytes: int,
        error: Exception | None,
    ) -> None:
        self._chunks = chunks
        self._close = close
        self._remaining = max_bytes
        self._error = error

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for chunk in self._chunks:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                if self._error is not None:
                    raise self._error
                return
            yield chunk

    async def aclose(self) -> None:
        await self._close()
