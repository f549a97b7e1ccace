"""httpx transport through a proxy, with the connections of aiohttp.

Imported only where a variable names a proxy, see docs/adr/0016.
"""

from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from gateway.common.concurrency import Deadline
from gateway.llm.http.pooled_transport import read_timeouts

# As much as aiohttp reads ahead: each read becomes one event and one frame. See docs/adr/0003.
AiohttpResponseStream.CHUNK_SIZE = 64 * 1024  # pyright: ignore[reportAttributeAccessIssue]


class ProxyTransport(AiohttpTransport):
    """Sends requests through a proxy."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.TransportError: there is no response.
        """
        with _translate_errors():
            response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _ProxiedBody(response.stream, read_timeouts(request).read)
        return response


class _ProxiedBody(httpx.AsyncByteStream):
    """A body each of whose reads has a time limit.

    aiohttp ends its own limit at an invalid chunk size, of which it does not tell the reader.
    """

    def __init__(self, inner: httpx.AsyncByteStream, read_seconds: float | None) -> None:
        self._inner = inner
        self._read_seconds = read_seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._inner)
        while True:
            with _translate_errors():
                async with Deadline.after(self._read_seconds).limit():
                    piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    async def aclose(self) -> None:
        with _translate_errors():
            await self._inner.aclose()


@contextmanager
def _translate_errors() -> Generator[None]:
    """Translate the errors that httpx-aiohttp does not know."""
    try:
        yield
    except TimeoutError as error:
        raise httpx.ReadTimeout("The server sent nothing for too long.") from error
    except aiohttp.ClientError as error:
        raise httpx.RemoteProtocolError(type(error).__name__) from error
