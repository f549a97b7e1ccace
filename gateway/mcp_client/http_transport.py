"""HTTP for one MCP connection: a failed exchange fails its own call.

In the SDK as it is, one transport error ends the whole client and every call on it.
"""

from collections.abc import AsyncGenerator
from functools import lru_cache

import httpx2

from gateway.common.logging import get_logger

log = get_logger(__name__)

CONNECTION_CLOSED = -32000
certificates = lru_cache(maxsize=1)(httpx2.create_ssl_context)
"""Whom to trust, read once: that takes longer than all else of opening a connection."""
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_SESSION = "mcp-session-id"
_UNKNOWN_METHOD, _SERVER_ERROR = b"-32601", b"-32000"


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
            if self.armed and await _forgot_session(request, response):
                await response.aclose()
                return httpx2.Response(404, request=request)  # of which the SDK says what it is
            if self.armed and response.status_code >= 500 and b"jsonrpc" not in await response.aread():
                await response.aclose()
                return _failure(request, unsent=False)  # of a proxy: nobody knows what became of the request
        except httpx2.TransportError as error:
            if not self.armed:
                raise
            return _failure(request, unsent=isinstance(error, _NEVER_SENT))
        if self.armed and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _CutQuietly(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _forgot_session(request: httpx2.Request, response: httpx2.Response) -> bool:
    """Whether the server does not know the session any more: it answers with 404, whatever it says of it. With 400 do
    servers that are written after the TypeScript SDK's examples."""
    if request.method != "POST" or _SESSION not in request.headers or response.status_code not in (400, 404):
        return False
    body = await response.aread()
    if response.status_code == 404:
        return _UNKNOWN_METHOD not in body
    return _SERVER_ERROR in body and any(word in body.lower() for word in (b"session", b"not initialized"))


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
