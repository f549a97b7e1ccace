"""Responses that are left before their end, over real sockets."""

import asyncio

import pytest

from gateway_runtime.http_client import pool as pool_module
from gateway_runtime.http_client.pool import HttpConnectionPool
from tests.eventually import eventually
from tests.gateway_runtime.test_http_client import ANSWER, PATIENT, REQUEST, open_pool, request, serve_raw

EVENT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n"
END = b"0\r\n\r\n"


class EventServer:
    """Sends an event; `go_on` lets it send the rest of its answer."""

    def __init__(self, *rest: bytes) -> None:
        self._rest = rest
        self._count = 0
        self.go_on = asyncio.Event()

    async def answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        if self._count > 1:
            writer.write(ANSWER)
            return
        writer.write(EVENT)
        await self.go_on.wait()
        for piece in self._rest:
            writer.write(piece)
            await asyncio.sleep(0.01)


async def take_event(pool: HttpConnectionPool) -> None:
    connection = await pool.begin_exchange(REQUEST, b"", PATIENT)
    assert await connection.read_piece() == b"event"
    pool.take_back(connection, is_complete=True)


@pytest.mark.parametrize("rest", [[END], [b"0\r\n", b"\r\n"]], ids=["at-once", "in-two-pieces"])
async def test_connection_whose_response_ends_soon_is_used_again(
    rest: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_END_SECONDS", 30.0)
    events = EventServer(*rest)
    async with serve_raw(events.answer) as server, open_pool(server, max_connections=1) as pool:
        await take_event(pool)
        next_request = asyncio.create_task(request(pool))  # has to wait for the only connection
        events.go_on.set()
        assert await next_request == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize("rest", [b"4\r\nmore\r\n", b"no chunk\r\n"], ids=["more-content", "broken"])
async def test_connection_whose_response_goes_on_is_closed(rest: bytes) -> None:
    events = EventServer(rest)
    async with serve_raw(events.answer) as server, open_pool(server, max_connections=1) as pool:
        await take_event(pool)
        events.go_on.set()
        assert await request(pool) == b"ok"
        assert server.connections == 2
        await eventually(lambda: pool.open_connections == 1)


async def test_connection_whose_response_stays_open_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_END_SECONDS", 0.05)
    events = EventServer(END)
    async with serve_raw(events.answer) as server, open_pool(server, max_connections=1) as pool:
        await take_event(pool)
        assert await request(pool) == b"ok"  # the slot is free again
        assert server.connections == 2
        events.go_on.set()


async def test_closed_pool_leaves_no_response_open() -> None:
    events = EventServer(END)
    async with serve_raw(events.answer) as server, open_pool(server) as pool:
        await take_event(pool)
        pool.close_connections()
        await eventually(lambda: pool.open_connections == 0)
        events.go_on.set()
