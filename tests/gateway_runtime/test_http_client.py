"""The HTTP client against servers that misbehave, over real sockets."""

import asyncio
import contextvars
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway_runtime.cached_value import CachedValue
from gateway_runtime.http_client.connection import HttpConnection
from gateway_runtime.http_client.errors import (
    ConnectFailed,
    HttpClientError,
    RequestInvalid,
    RequestTimedOut,
    ResponseBroken,
    ResponseTimedOut,
    TooManyConnections,
)
from gateway_runtime.http_client.pool import AddressInfo, HttpConnectionPool, OriginPools, RequestTimeouts, build_head
from tests.certificates import create_certificate
from tests.eventually import eventually

PATIENT = RequestTimeouts(connect=30, read=30, pool=30)
REQUEST = build_head(b"POST", b"/", [(b"Content-Length", b"0")])
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """Answers each request of a connection with `answer`, and counts connections."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.left = asyncio.Event()
        """Set when a client has closed its connection."""
        self.port = 0

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await read_head(reader):
                await self._answer(reader, writer)
                await writer.drain()
        except (ConnectionError, RuntimeError, asyncio.LimitOverrunError):  # RuntimeError: of uvloop, once it is closed
            pass
        finally:
            self.left.set()
            writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Return the next head, or nothing at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def serve_raw(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncGenerator[RawServer]:
    server = RawServer(answer)
    listener = await asyncio.start_server(server.serve_connection, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@asynccontextmanager
async def open_pool(
    server: RawServer,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    max_connections: int = 10,
    idle_seconds: float = 60,
) -> AsyncGenerator[HttpConnectionPool]:
    pool = HttpConnectionPool(
        host, server.port, tls, max_connections=max_connections, max_idle=10, idle_seconds=idle_seconds
    )
    try:
        yield pool
    finally:
        pool.close_connections()


def send(data: bytes) -> Answer:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


def send_and_close(data: bytes) -> Answer:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return answer


async def request(
    pool: HttpConnectionPool,
    body: bytes | AsyncIterator[bytes] = b"",
    timeouts: RequestTimeouts = PATIENT,
    *,
    forgets_headers: bool = False,
) -> bytes:
    """Send a request and return the whole body of its answer."""
    connection = await pool.begin_exchange(REQUEST, body, timeouts)
    if forgets_headers:
        connection.forget_headers()
    try:
        return await collect(connection)
    finally:
        pool.take_back(connection)


async def collect(connection: HttpConnection) -> bytes:
    pieces: list[bytes] = []

    def consume(data: bytes) -> bool:
        pieces.append(data)
        return True

    assert await connection.push_body(consume)
    return b"".join(pieces)


async def test_connection_serves_one_request_after_another() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server) as pool:
        assert [await request(pool) for _ in range(3)] == [b"ok"] * 3
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ANSWER, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nX-T: 1\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["informational", "chunked", "no-content"],
)
async def test_forms_of_a_response_are_read_and_the_connection_is_kept(answer: bytes, body: bytes) -> None:
    async with serve_raw(send(answer)) as server, open_pool(server) as pool:
        assert [await request(pool) for _ in range(2)] == [body] * 2
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nuntil the end",
    ],
    ids=["without-length", "with-length"],
)
@pytest.mark.parametrize("forgets_headers", [False, True])
async def test_body_may_end_with_its_connection(answer: bytes, forgets_headers: bool) -> None:
    async with serve_raw(send_and_close(answer)) as server, open_pool(server) as pool:
        bodies = [await request(pool, forgets_headers=forgets_headers) for _ in range(2)]
        assert bodies == [b"until the end"] * 2
        assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-server\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
@pytest.mark.parametrize("forgets_headers", [False, True])
async def test_broken_response_is_an_error(answer: bytes, forgets_headers: bool) -> None:
    async with serve_raw(send_and_close(answer)) as server, open_pool(server) as pool:
        with pytest.raises(ResponseBroken):
            await request(pool, forgets_headers=forgets_headers)


async def test_forgotten_headers_are_those_that_tell_no_end() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Request-Id: 1\r\nContent-Length: 2\r\nDate: now\r\n\r\nok"
    async with serve_raw(send(answer)) as server, open_pool(server) as pool:
        connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
        connection.forget_headers()
        assert connection.headers == [(b"Content-Length", b"2")]
        assert await collect(connection) == b"ok"
        pool.take_back(connection)
        assert await request(pool) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 100),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 100),
    ],
    ids=["headers", "header", "informational", "trailers", "chunk-extension"],
)
async def test_endless_overhead_ends_the_exchange(start: bytes, endless: bytes) -> None:
    sent = 0

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(start)
        while sent < 64 * 1024 * 1024:
            writer.write(endless * 100)
            sent += len(endless) * 100
            await writer.drain()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        with pytest.raises(ResponseBroken):
            await request(pool)
        await server.left.wait()
        assert sent < 64 * 1024 * 1024


async def test_response_nobody_asked_for_reaches_no_later_request() -> None:
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    async with serve_raw(send(ANSWER + forged)) as server, open_pool(server) as pool:
        assert [await request(pool) for _ in range(3)] == [b"ok"] * 3
        assert server.connections == 3


async def test_connection_with_unasked_bytes_while_idle_is_closed() -> None:
    go_on = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool) == b"ok"
        go_on.set()
        await server.left.wait()
        assert await request(pool) == b"ok"
        assert server.connections == 2


async def test_connection_that_the_server_closed_is_not_used_again() -> None:
    async with serve_raw(send_and_close(ANSWER)) as server, open_pool(server) as pool:
        assert await request(pool) == b"ok"
        await eventually(lambda: not pool.open_connections)
        assert await request(pool) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("unread", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"], ids=["end", "bytes"])
async def test_connection_that_ended_while_the_loop_was_busy_is_not_used_again(unread: bytes) -> None:
    descriptors: list[int] = []

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        descriptors.append(writer.get_extra_info("socket").fileno())
        writer.write(ANSWER)

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool) == b"ok"
        if unread:
            os.write(descriptors[0], unread)
        else:
            with socket.socket(fileno=os.dup(descriptors[0])) as peer:
                peer.shutdown(socket.SHUT_RDWR)
        assert await request(pool) == b"ok"
        assert server.connections == 2


async def test_connections_that_the_server_closes_at_once_are_forgotten() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    pool = HttpConnectionPool(
        "127.0.0.1", listener.sockets[0].getsockname()[1], None, max_connections=5, max_idle=5, idle_seconds=60
    )
    async with listener:
        for _ in range(20):
            with pytest.raises((ResponseBroken, ConnectFailed)):
                await request(pool)
        await eventually(lambda: not pool.open_connections)


async def test_unused_connection_is_closed_after_a_time() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server, idle_seconds=0.05) as pool:
        assert await request(pool) == b"ok"
        await server.left.wait()
        assert await request(pool) == b"ok"


async def test_connection_is_not_used_after_its_time_while_the_loop_was_busy() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server, idle_seconds=0.05) as pool:
        assert await request(pool) == b"ok"
        time.sleep(0.1)  # the loop is busy, so its timer is late
        assert await request(pool) == b"ok"
        assert server.connections == 2


async def test_reader_that_wants_no_more_stops_the_server() -> None:
    size, piece = 64 * 1024 * 1024, b"x" * 65_536
    sent = 0

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
        received = 0
        wants_more = False

        def consume(data: bytes) -> bool:
            nonlocal received
            received += len(data)
            return wants_more

        assert not await connection.push_body(consume)
        before = -1
        while before < sent:  # until the buffers of the sockets are full
            before = sent
            await asyncio.sleep(0.1)
        assert received <= 1024 * 1024
        assert sent < size
        wants_more = True
        assert await connection.push_body(consume)
        assert received == size
        pool.take_back(connection)


async def test_body_that_came_with_its_head_ends_at_the_first_push() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with serve_raw(send(answer)) as server, open_pool(server) as pool:
        for _ in range(2):
            connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
            pieces: list[bytes] = []

            def consume(data: bytes, pieces: list[bytes] = pieces) -> bool:
                pieces.append(data)
                return False

            assert await connection.push_body(consume)
            assert pieces == [b"ok"]
            pool.take_back(connection)
        assert server.connections == 1


async def test_error_of_the_reader_ends_the_exchange() -> None:
    class ReaderFailed(Exception): ...

    def consume(_data: bytes) -> bool:
        raise ReaderFailed

    async with (
        serve_raw(send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")) as server,
        open_pool(server) as pool,
    ):
        connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
        with pytest.raises(ReaderFailed):
            await connection.push_body(consume)
        pool.take_back(connection)
        await server.left.wait()


async def test_reader_runs_in_the_context_of_its_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    proceed = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await writer.drain()
        await proceed.wait()
        writer.write(b"ok")

    async with serve_raw(answer) as server, open_pool(server) as pool:
        for name in ("first", "second"):  # on one connection
            proceed.clear()
            variable.set(name)
            connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
            seen: list[str] = []

            def consume(_data: bytes, seen: list[str] = seen) -> bool:
                seen.append(variable.get())
                return True

            reading = asyncio.create_task(connection.push_body(consume))
            asyncio.get_running_loop().call_soon(proceed.set)
            assert await reading
            assert seen == [name]
            pool.take_back(connection)
        assert server.connections == 1


async def test_cancelled_request_closes_its_connection() -> None:
    received = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        received.set()
        await reader.read()

    async with serve_raw(answer) as server, open_pool(server, max_connections=1) as pool:
        for _ in range(2):  # the second needs the slot of the first
            received.clear()
            server.left.clear()
            task = asyncio.create_task(request(pool))
            await received.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.left.wait()


async def test_silent_server_is_left() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await reader.read()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        with pytest.raises(ResponseTimedOut):
            await request(pool, timeouts=RequestTimeouts(connect=30, read=0.1, pool=30))
        await server.left.wait()


async def test_pause_of_the_reader_is_no_silence() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server) as pool:
        connection = await pool.begin_exchange(REQUEST, b"", RequestTimeouts(connect=30, read=0.5, pool=30))
        await asyncio.sleep(0.7)
        assert await collect(connection) == b"ok"
        pool.take_back(connection)


async def test_connections_are_limited_and_requests_wait_for_one() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server, max_connections=1) as pool:
        first = await pool.begin_exchange(REQUEST, b"", PATIENT)
        with pytest.raises(TooManyConnections):
            await request(pool, timeouts=RequestTimeouts(connect=30, read=30, pool=0.05))
        second = asyncio.create_task(request(pool))
        assert await collect(first) == b"ok"
        pool.take_back(first)
        assert await second == b"ok"
        assert server.connections == 1


async def yield_pieces(count: int) -> AsyncGenerator[bytes]:
    for _ in range(count):
        yield b"x" * 65_536


async def test_body_is_sent_in_pieces() -> None:
    received = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received += len(await reader.readexactly(20 * 65_536))
        writer.write(ANSWER)

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool, yield_pieces(20)) == b"ok"
        assert await request(pool, yield_pieces(20)) == b"ok"
        assert (received, server.connections) == (2 * 20 * 65_536, 1)


async def test_early_answer_ends_the_upload_and_its_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool, yield_pieces(10_000)) == b"no"
        await server.left.wait()


async def test_server_that_does_not_read_an_upload_is_left() -> None:
    stop = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await stop.wait()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        with pytest.raises(RequestTimedOut):
            await request(pool, yield_pieces(10_000), RequestTimeouts(connect=30, read=0.2, pool=30))
        stop.set()


@pytest.mark.parametrize("value", [b"a\r\nX-B: c", b"a\nX-B: c", b"a\rb", b"a\0b"])
def test_header_with_a_line_break_is_refused(value: bytes) -> None:
    with pytest.raises(RequestInvalid):
        build_head(b"POST", b"/", [(b"X-A", value)])


async def test_refused_connection_is_an_error_and_frees_its_slot() -> None:
    async with serve_raw(send(ANSWER)) as server:
        pass
    async with open_pool(server, max_connections=1) as pool:
        for _ in range(2):
            with pytest.raises(ConnectFailed):
                await request(pool)


async def test_next_address_is_tried_when_one_refuses() -> None:
    """The name has two addresses, and the server listens on one."""
    async with serve_raw(send(ANSWER)) as server, open_pool(server) as pool:
        refused = (10, 1, 6, "", ("::1", server.port, 0, 0))
        served = (2, 1, 6, "", ("127.0.0.1", server.port))

        async def resolve() -> Sequence[AddressInfo]:
            return [refused, served]

        pool._addresses = CachedValue(resolve, 10.0)
        assert await request(pool) == b"ok"


async def test_certificates_are_verified(tmp_path: Path) -> None:
    files = create_certificate(tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.cert, files.key)
    trusting = ssl.create_default_context(cafile=files.cert)
    async with serve_raw(send(ANSWER), server_side) as server:
        async with open_pool(server, tls=trusting) as pool:
            assert [await request(pool) for _ in range(2)] == [b"ok"] * 2
        assert server.connections == 1
        for host, context in (("127.0.0.1", ssl.create_default_context()), ("127.0.0.2", trusting)):
            async with open_pool(server, host=host, tls=context) as pool:
                with pytest.raises(HttpClientError):
                    await request(pool)


async def test_closed_pool_leaves_no_connection_open() -> None:
    async with serve_raw(send(ANSWER)) as server:
        async with open_pool(server) as pool:
            assert await request(pool) == b"ok"
        await eventually(server.left.is_set)


async def test_request_cancelled_as_its_answer_arrives_leaves_no_connection_unused() -> None:
    async with serve_raw(send(ANSWER)) as server, open_pool(server) as pool:
        for ticks in range(200):
            task = asyncio.create_task(request(pool))
            for _ in range(ticks % 20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await request(pool) == b"ok"
        await eventually(lambda: pool.open_connections == 1)


async def test_answer_before_the_request_is_given_and_its_connection_left() -> None:
    async def serve_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy")
        await read_head(reader)
        writer.close()

    listener = await asyncio.start_server(serve_early, "127.0.0.1", 0)
    pool = HttpConnectionPool(
        "127.0.0.1", listener.sockets[0].getsockname()[1], None, max_connections=1, max_idle=1, idle_seconds=60
    )
    async with listener:
        for _ in range(2):
            connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
            assert (connection.status, await collect(connection)) == (503, b"busy")
            pool.take_back(connection)
        await eventually(lambda: not pool.open_connections)
        pool.close_connections()


async def test_connection_with_an_unsent_request_is_not_used_again() -> None:
    stop = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        await writer.drain()
        await stop.wait()  # and read no more

    async with serve_raw(answer) as server, open_pool(server) as pool:
        for number in (1, 2):
            connection = await pool.begin_exchange(REQUEST, b"x" * 32 * 1024 * 1024, PATIENT)
            assert await collect(connection) == b"ok"
            pool.take_back(connection)
            assert server.connections == number
        stop.set()


async def test_early_answer_is_given_while_the_server_reads_no_more() -> None:
    left = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await left.wait()

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool, yield_pieces(10_000)) == b"no"
        left.set()


async def test_slow_upload_of_a_server_that_reads_is_no_silence() -> None:
    size = 48 * 1024 * 1024

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(16):  # longer in all than the limit
            await reader.readexactly(size // 16)
            await asyncio.sleep(0.1)
        writer.write(ANSWER)

    async with serve_raw(answer) as server, open_pool(server) as pool:
        assert await request(pool, b"x" * size, RequestTimeouts(connect=30, read=1.4, pool=30)) == b"ok"


@pytest.mark.parametrize("drip", [b"HTTP/1.1 102 Processing\r\n\r\n", b"X"], ids=["informational", "bytes"])
async def test_head_that_arrives_slowly_has_one_limit_of_time(drip: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if drip == b"X":
            writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(drip)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serve_raw(answer) as server, open_pool(server) as pool:
        with pytest.raises(ResponseTimedOut):
            await request(pool, timeouts=RequestTimeouts(connect=30, read=0.2, pool=30))
        await server.left.wait()


@pytest.mark.parametrize("host", ["a..b", ".com", f"{'a' * 64}.com", "name.invalid"])
async def test_odd_and_unknown_names_are_connection_errors(host: str) -> None:
    pool = HttpConnectionPool(host, 80, None, max_connections=1, max_idle=1, idle_seconds=60)
    with pytest.raises(ConnectFailed):
        await request(pool)


async def test_lines_without_carriage_returns_are_read() -> None:
    async with serve_raw(send(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")) as server, open_pool(server) as pool:
        assert await request(pool) == b"ok"


def test_pools_are_for_http_alone() -> None:
    pools = OriginPools(ssl.create_default_context(), max_connections=1, max_idle=1, idle_seconds=60)
    with pytest.raises(RequestInvalid):
        pools.get_pool("ftp", "host", None)
