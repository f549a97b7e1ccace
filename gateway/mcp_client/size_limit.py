"""Limits the size of what an MCP or authorization server answers."""

from collections.abc import AsyncGenerator, Callable

import httpx2

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of a response body and of an event of a stream."""
TOO_LARGE = "the answer is too large"
_EVENT_STREAM = "text/event-stream"


class AnswerTooLarge(httpx2.StreamError):
    """The body of an answer exceeds its limit.

    The SDK reports a `StreamError` as the result of its own request; another error would end the connection.
    """


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
