"""httpx transport with the connections of `gateway_runtime.http_client`.

See docs/adr/0032.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from ssl import SSLContext

import httpx

from gateway_runtime.http_client import errors
from gateway_runtime.http_client.connection import Header, HttpConnection
from gateway_runtime.http_client.pool import HttpConnectionPool, OriginPools, RequestTimeouts, build_head

_TRANSLATED_ERRORS = errors.ErrorTranslation(
    {
        errors.ConnectFailed: httpx.ConnectError,
        errors.ConnectTimedOut: httpx.ConnectTimeout,
        errors.RequestInvalid: httpx.LocalProtocolError,
        errors.RequestTimedOut: httpx.WriteTimeout,
        errors.ResponseBroken: httpx.RemoteProtocolError,
        errors.ResponseTimedOut: httpx.ReadTimeout,
        errors.TooManyConnections: httpx.PoolTimeout,
    }
)
_IDLE_SECONDS = 15.0


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends requests over HTTP/1.1 without a proxy."""

    def __init__(self, tls: SSLContext, limits: httpx.Limits) -> None:
        self._pools = OriginPools(
            tls,
            max_connections=limits.max_connections or 100,
            max_idle=limits.max_keepalive_connections or 0,
            idle_seconds=_IDLE_SECONDS,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = self.find_pool(request.url)
        body = await open_body(pool, encode_request_head(request), _get_request_body(request), read_timeouts(request))
        return body.make_response(request)

    def find_pool(self, url: httpx.URL) -> HttpConnectionPool:
        """Return the pool of an address.

        Raises:
            httpx.LocalProtocolError: the address is not one of HTTP.
        """
        with _TRANSLATED_ERRORS:
            return self._pools.get_pool(url.scheme, url.raw_host.decode("ascii"), url.port)

    async def aclose(self) -> None:
        self._pools.close_connections()


class PooledBody(httpx.AsyncByteStream):
    """Body of a response, to be iterated or pushed to a function."""

    def __init__(self, pool: HttpConnectionPool, connection: HttpConnection) -> None:
        self._pool = pool
        self._connection: HttpConnection | None = connection
        self.status = connection.status
        self.headers: Sequence[Header] = connection.headers

    def forget_headers(self) -> None:
        """Free the headers, as the body may take minutes."""
        self.headers = ()
        if self._connection is not None:
            self._connection.forget_headers()

    async def push_body(self, consume: Callable[[bytes], bool]) -> bool:
        """See `HttpConnection.push_body`.

        Raises:
            httpx.TransportError: the body is incomplete.
        """
        if self._connection is None:
            return True
        with _TRANSLATED_ERRORS:
            return await self._connection.push_body(consume)

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while self._connection is not None:
            with _TRANSLATED_ERRORS:
                data = await self._connection.read_piece()
            if not data:
                return
            yield data

    async def aclose(self) -> None:
        if (connection := self._connection) is not None:
            self._connection = None
            self._pool.take_back(connection)

    def make_response(self, request: httpx.Request) -> httpx.Response:
        """Make httpx's response with this body."""
        reason = self._connection.reason if self._connection is not None else b""
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": reason}
        return httpx.Response(self.status, headers=self.headers, stream=self, request=request, extensions=extensions)


async def open_body(
    pool: HttpConnectionPool, head: bytes, body: bytes | AsyncIterable[bytes], timeouts: RequestTimeouts
) -> PooledBody:
    """Send a request with this head, and return the response's body.

    Raises:
        httpx.TransportError: there is no response.
    """
    with _TRANSLATED_ERRORS:
        return PooledBody(pool, await pool.begin_exchange(head, body, timeouts))


def encode_request_head(request: httpx.Request) -> bytes:
    """Build the head of a request.

    Raises:
        httpx.LocalProtocolError: a header has a line break.
    """
    with _TRANSLATED_ERRORS:
        return build_head(request.method.encode(), request.url.raw_path, request.headers.raw)


def read_timeouts(request: httpx.Request) -> RequestTimeouts:
    timeout: dict[str, float | None] = request.extensions.get("timeout") or {}
    return RequestTimeouts(connect=timeout.get("connect"), read=timeout.get("read"), pool=timeout.get("pool"))


def _get_request_body(request: httpx.Request) -> bytes | AsyncIterable[bytes]:
    try:
        return request.content
    except httpx.RequestNotRead:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        length = request.headers.get("content-length")
        return _split_chunks(request.stream) if length is None else _check_length(request.stream, int(length))


async def _split_chunks(stream: httpx.AsyncByteStream) -> AsyncGenerator[bytes]:
    async for piece in stream:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


async def _check_length(stream: httpx.AsyncByteStream, length: int) -> AsyncGenerator[bytes]:
    async for piece in stream:
        length -= len(piece)
        if length < 0:
            break
        yield piece
    if length != 0:
        raise httpx.LocalProtocolError("the body has another length than its header says")
