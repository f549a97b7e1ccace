"""Limits the size of an event of the legacy transport `sse`."""

import re
from collections.abc import AsyncGenerator
from functools import partial

import httpx2
import mcp.client.sse
from mcp.shared._httpx_utils import sse_within_origin

from gateway.mcp_client.size_limit import MessageBuffer, make_too_large_error

_EVENT_STREAM = "text/event-stream"
_EVENT_END = re.compile(r"\n\n|\r\n\r\n|\r\r")
_MAX_END_LENGTH = 4


class EventLimitingTransport(httpx2.AsyncBaseTransport):
    """Replaces each event that is too large.

    An error for the request that it answers takes its place. All answers of the server arrive on one stream, so its end
    would fail all calls. An event without the id of a request is dropped.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, max_length: int) -> None:
        self._inner = inner
        self._max_length = max_length

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if not response.headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
            return response
        headers = response.headers.copy()
        for name in ("content-encoding", "content-length"):  # they describe the body before it is decompressed
            headers.pop(name, None)
        stream = _EventLimitingStream(response, self._max_length)
        return httpx2.Response(
            response.status_code, headers=headers, stream=stream, request=request, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _EventLimitingStream(httpx2.AsyncByteStream):
    """A decompressed event stream, in whole events."""

    def __init__(self, response: httpx2.Response, max_length: int) -> None:
        self._response = response
        self._max_length = max_length

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        event, tail = MessageBuffer(self._max_length, ""), ""
        async for chunk in self._response.aiter_text():
            data, start = tail + chunk, 0
            for end in _EVENT_END.finditer(data):
                event.append(data[start : end.end()])
                start = end.end()
                yield _end_event(event)
            rest = data[start:]
            event.append(rest[: 1 - _MAX_END_LENGTH])
            tail = rest[1 - _MAX_END_LENGTH :]  # may be the start of an end
        yield (event.join() + tail).encode()

    async def aclose(self) -> None:
        await self._response.aclose()


def _end_event(event: MessageBuffer[str]) -> bytes:
    if event.is_too_large:
        _, brace, start = event.start.partition("{")
        error = make_too_large_error(brace + start, event.end)
        text = "" if error is None else f"event: message\ndata: {error}\n\n"
    else:
        text = event.join()
    event.clear()
    return text.encode()


def lift_event_limit() -> None:
    """Make the SDK read events of any size, which `EventLimitingTransport` has limited.

    Its `sse_client` has no parameter for that, and ends the connection at an event of 1 MiB.
    """
    mcp.client.sse.sse_within_origin = partial(sse_within_origin, max_event_size=None)  # pyright: ignore[reportPrivateImportUsage]
