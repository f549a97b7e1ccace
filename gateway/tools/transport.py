"""HTTP for one MCP connection: a failed exchange fails its own call.

In the SDK as it is, one transport error ends the whole client and every call on it.
"""

from collections.abc import AsyncGenerator
from functools import lru_cache

import httpx2

from gateway.log import get_logger

log = get_logger(__name__)

CONNECTION_CLOSED = -32000
certificates = lru_cache(maxsize=1)(httpx2.create_ssl_context)
"""Whom to trust, read once: that takes longer than all else of opening a connection."""
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class IsolatingTransport(httpx2.AsyncBaseTransport):
    """Answers a failed exchange with a JSON-RPC error, whose `data.unsent` tells that the request never left.

    Until `armed` it raises as usual: while connecting, a dead server must not be taken for an old one.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.armed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            if not self.armed:
                raise
            return _failure(request, unsent=isinstance(error, _NEVER_SENT))
        if self.armed and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _CutQuietly(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _CutQuietly(httpx2.AsyncByteStream):
    """A body that breaks off ends: the SDK reports a response without an end to its own caller only."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except httpx2.TransportError as error:
            log.debug("mcp_body_cut", error=type(error).__name__)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _failure(request: httpx2.Request, *, unsent: bool) -> httpx2.Response:
    error = {"code": CONNECTION_CLOSED, "message": "the connection failed", "data": {"unsent": unsent}}
    return httpx2.Response(503, request=request, json={"jsonrpc": "2.0", "id": None, "error": error})
