"""Connections to one HTTP server."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from socket import SOCK_STREAM

import aiohappyeyeballs

from gateway_runtime.background.waits import Deadline
from gateway_runtime.cached_value import CachedValue
from gateway_runtime.http_client.connection import Header, HttpConnection
from gateway_runtime.http_client.errors import ConnectFailed, ConnectTimedOut, RequestInvalid, TooManyConnections

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]

_ADDRESS_SECONDS = 10.0
_NEXT_ADDRESS_SECONDS = 0.25
_END_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class RequestTimeouts:
    """Seconds of waiting.

    `connect`: for a new connection; `read`: between two reads or writes; `pool`: for a free connection.
    """

    connect: float | None
    read: float | None
    pool: float | None


def build_head(method: bytes, target: bytes, headers: Iterable[Header]) -> bytes:
    """Build the head of a request, with its last empty line.

    Raises:
        RequestInvalid: a header has a line break.
    """
    lines = [b"%b %b HTTP/1.1" % (method, target), *[b"%b: %b" % header for header in headers]]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
        raise RequestInvalid("A header of the request has a line break or a NUL.")
    return head + b"\r\n\r\n"


class HttpConnectionPool:
    """At most `max_connections` to a server, and `max_idle` idle ones.

    An idle one is kept for `idle_seconds`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        max_connections: int,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._free = asyncio.Semaphore(max_connections)
        self._idle: deque[tuple[float, HttpConnection]] = deque()
        self._open: set[HttpConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._addresses = CachedValue(self._resolve, _ADDRESS_SECONDS)

    async def begin_exchange(
        self,
        head: bytes,
        body: bytes | AsyncIterable[bytes],
        timeouts: RequestTimeouts,
        before_send: Callable[[], None] | None = None,
    ) -> HttpConnection:
        """Send a request, and return its connection with the response's head.

        `before_send` is called with a connection at hand; what it raises is raised here, and nothing is sent. The
        caller returns the connection with `take_back`.

        Raises:
            HttpClientError: there is no response.
        """
        if self._free.locked():
            await self._wait_for_slot(timeouts.pool)
        else:
            await self._free.acquire()
        connection: HttpConnection | None = None
        try:
            connection = self._take_idle() or await self._open_connection(timeouts.connect)
            if before_send is not None:
                before_send()
            await connection.send_request(head, body, timeouts.read)
        except BaseException:
            if connection is None:
                self._free.release()
            else:
                self.take_back(connection)
            raise
        return connection

    async def _wait_for_slot(self, seconds: float | None) -> None:
        try:
            async with Deadline.after(seconds).limit():
                await self._free.acquire()
        except TimeoutError:
            raise TooManyConnections("All connections to the server are in use.") from None

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def take_back(self, connection: HttpConnection, *, is_complete: bool = False) -> None:
        """End the connection's exchange, and keep the connection if possible.

        With `is_complete`, the caller needs no more of the response, whose end may be about to arrive.
        """
        if is_complete and connection.await_end(partial(self.take_back, connection), _END_SECONDS):
            return
        self._free.release()
        if not connection.end_exchange():
            return
        if self._is_closed or len(self._idle) >= self._max_idle:
            connection.abort_connection()
            return
        loop = asyncio.get_running_loop()
        self._idle.append((loop.time() + self._idle_seconds, connection))
        if self._timer is None:
            self._timer = loop.call_at(self._idle[0][0], self._close_idle)

    def close_connections(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in tuple(self._open):
            connection.abort_connection()

    def _take_idle(self) -> HttpConnection | None:
        while self._idle:
            ends_at, connection = self._idle.pop()
            if connection.can_be_used and ends_at > asyncio.get_running_loop().time():
                return connection
            connection.abort_connection()
        return None

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[0][0] <= loop.time():
            self._idle.popleft()[1].abort_connection()
        self._timer = loop.call_at(self._idle[0][0], self._close_idle) if self._idle else None

    async def _open_connection(self, seconds: float | None) -> HttpConnection:
        try:
            async with Deadline.after(seconds).limit():
                connection = await self._connect()
        except TimeoutError:
            raise ConnectTimedOut("The server did not accept a connection in time.") from None
        except (OSError, ValueError, RuntimeError) as error:  # with errors of TLS and of odd names
            raise ConnectFailed("The server cannot be reached.") from error
        if self._is_closed:
            connection.abort_connection()
        return connection

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        addresses = await self._addresses.get()
        socket = await aiohappyeyeballs.start_connection(  # pyright: ignore[reportUnknownMemberType]
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, loop=loop
        )
        connection = HttpConnection(self._open.discard)
        self._open.add(connection)
        try:
            await loop.create_connection(
                lambda: connection,
                sock=socket,
                ssl=self._tls,
                server_hostname=self._host.rstrip(".") if self._tls else None,
            )
        except BaseException:
            self._open.discard(connection)
            connection.abort_connection()  # before its socket, whose number may be used again
            socket.close()
            raise
        return connection

    async def _resolve(self) -> Sequence[AddressInfo]:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(self._host, self._port, type=SOCK_STREAM)


class OriginPools:
    """Pools of connections, one for each scheme, host and port."""

    def __init__(self, tls: ssl.SSLContext, *, max_connections: int, max_idle: int, idle_seconds: float) -> None:
        self._tls = tls
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._pools: dict[tuple[str, str, int | None], HttpConnectionPool] = {}

    def get_pool(self, scheme: str, host: str, port: int | None) -> HttpConnectionPool:
        """Return the pool of an origin, whose `host` is in ASCII.

        Raises:
            RequestInvalid: the scheme is neither http nor https.
        """
        if scheme not in ("http", "https"):
            raise RequestInvalid("The address is not one of HTTP.")
        key = scheme, host, port
        if (pool := self._pools.get(key)) is None:
            is_secure = scheme == "https"
            pool = self._pools[key] = HttpConnectionPool(
                host,
                port or (443 if is_secure else 80),
                self._tls if is_secure else None,
                max_connections=self._max_connections,
                max_idle=self._max_idle,
                idle_seconds=self._idle_seconds,
            )
        return pool

    def close_connections(self) -> None:
        for pool in self._pools.values():
            pool.close_connections()
