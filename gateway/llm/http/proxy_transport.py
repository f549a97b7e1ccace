"""httpx transport through a proxy, with the connections of aiohttp.

Imported only where a variable names a proxy, see docs/adr/0016.
"""

from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

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
        response.stream = _ProxiedBody(response.stream)
        return response


class _ProxiedBody(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translate_errors():
            async for piece in self._inner:
                yield piece

    async def aclose(self) -> None:
        with _translate_errors():
            await self._inner.aclose()


@contextmanager
def _translate_errors() -> Generator[None]:
    """Translate the errors that httpx-aiohttp does not know."""
    try:
        yield
    except aiohttp.ClientError as error:
        raise httpx.RemoteProtocolError(type(error).__name__) from error
