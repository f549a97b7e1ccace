"""Connections: their number, their Host headers, and clients that do not read."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.simulator import Simulator
from gateway_runtime import http_protocol
from gateway_runtime.connections import slow_readers
from gateway_runtime.connections.limits import ConnectionLimits, get_connection_source
from gateway_runtime.connections.slow_readers import UnsentBytes
from gateway_runtime.http_protocol import HttpProtocol, limit_connections
from tests.eventually import eventually
from tests.gateway.api.test_protocol import assert_refusal, parse_reply, repeat_over_limit, send_raw
from tests.stack import Gateway, serve_asgi, serve_gateway

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _ToolServer:
    """The address of the tool server, for `send_raw`."""

    def __init__(self, url: str) -> None:
        self.base_url = url


@pytest.mark.parametrize("server", ["gateway", "tool server"])
async def test_request_has_one_host_header(shared_gateway: Gateway, tools_url: str, server: str) -> None:
    target: Any = shared_gateway if server == "gateway" else _ToolServer(tools_url)
    for hosts in (b"Host: localhost\r\nHost: evil.example\r\n", b"Host: localhost\r\nhost: localhost\r\n", b""):
        request = b"GET /health HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n"
        assert_refusal(parse_reply(await send_raw(target, request)), 400, "invalid_http")
    assert b" 200 " in await send_raw(target, HEALTH)


async def test_tool_server_bounds_request_heads_before_authentication(tools_url: str) -> None:
    target: Any = _ToolServer(tools_url)
    for start, chunk in (
        (b"GET /mcp HTTP/1.1\r\nX-A: ", b"a"),
        (b"GET /mcp HTTP/1.1\r\n", b"X-A: a\r\n"),
        (b"GET /", b"a"),
    ):
        assert_refusal(parse_reply(await send_raw(target, start, *repeat_over_limit(chunk))), 431, "head_too_large")


async def test_own_process_of_the_tool_server_uses_the_protocol() -> None:
    from tools_server.http_server import HttpServer

    assert issubclass(HttpServer(lambda *_: None, lambda: None).config.http, HttpProtocol)  # type: ignore[arg-type]


async def test_flood_of_pipelined_requests_closes_the_connection(shared_gateway: Gateway) -> None:
    answer = await send_raw(shared_gateway, REQUEST * 5_000)
    assert answer.count(b"HTTP/1.1 ") <= http_protocol.MAX_PIPELINED_REQUESTS + 1


@contextlib.asynccontextmanager
async def open_connections(base_url: str, count: int) -> AsyncGenerator[list[asyncio.StreamReader]]:
    url = urlsplit(base_url)
    pairs = [await asyncio.open_connection(url.hostname, url.port) for _ in range(count)]
    try:
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (ConnectionLimits(max_total=100, max_per_source=5), 429),
        (ConnectionLimits(max_total=5, max_per_source=100), 503),
        (ConnectionLimits(max_total=5, max_per_source=1, trusted=["127.0.0.0/8"]), 503),
    ],
    ids=["source", "total", "proxy"],
)
async def test_connections_are_bounded_and_their_slots_become_free(
    database_url: str, simulator: Simulator, limits: ConnectionLimits, status: int
) -> None:
    async with serve_gateway(database_url, simulator, None, http=limit_connections(limits)) as gateway:
        async with open_connections(gateway.base_url, 5):
            await eventually(lambda: limits.find_excess("127.0.0.1") is not None)
            assert_refusal(parse_reply(await send_raw(gateway, HEALTH)), status, "too_many_connections")
        await eventually(lambda: limits.find_excess("127.0.0.1") is None)
        assert b" 200 " in await send_raw(gateway, HEALTH)


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


async def test_websockets_count_until_they_are_closed() -> None:
    limits = ConnectionLimits(max_per_source=3)
    async with (
        serve_asgi(_echo, http=limit_connections(limits)) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        sockets = [await session.ws_connect(url) for _ in range(3)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await session.ws_connect(url)
        assert refusal.value.status == 429
        await sockets.pop().close()
        await eventually(lambda: limits.find_excess("127.0.0.1") is None)
        sockets.append(await session.ws_connect(url))
        for socket in sockets:
            await socket.close()
        await eventually(lambda: not limits._counts)


def test_addresses_of_one_network_are_one_source() -> None:
    assert get_connection_source("2001:db8:1:2::5") == get_connection_source("2001:db8:1:2:ffff::")
    assert get_connection_source("2001:db8:1:2::5") != get_connection_source("2001:db8:1:3::5")
    assert get_connection_source("::ffff:192.0.2.1") == get_connection_source("192.0.2.1")
    assert get_connection_source("fe80::1%eth0") == "fe80::/64"
    assert get_connection_source("2002:c000:0201:5::1") == get_connection_source("192.0.2.1")
    assert get_connection_source("64:ff9b::192.0.2.1") == get_connection_source("192.0.2.1")
    assert get_connection_source(None) == "unknown"


def test_only_proxies_of_the_administrator_exceed_the_limit_of_a_source() -> None:
    limits = ConnectionLimits(max_total=100, max_per_source=1, trusted=["2001:db8::5", "192.0.2.0/28"])

    def find_excess(host: str) -> str | None:
        source = limits.find_source(host)
        limits.add(source)
        limits.add(source)
        try:
            return limits.find_excess(source)
        finally:
            limits.remove(source)
            limits.remove(source)

    assert [find_excess(host) for host in ("2001:db8::5", "192.0.2.3", "::ffff:192.0.2.3")] == [None] * 3
    assert [find_excess(host) for host in ("2001:db8::6", "192.0.2.16", "")] == ["source"] * 3


class _ImpatientProtocol(HttpProtocol):
    write_timeout_seconds = 0.2


def open_slow_reader(base_url: str) -> socket.socket:
    """Open a connection that can receive little before the client reads."""
    url = urlsplit(base_url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect((url.hostname, url.port))
    return client


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("more_body", [True, False])
async def test_client_that_does_not_read_is_disconnected(keep_alive: bool, more_body: bool) -> None:
    disconnected = asyncio.Event()

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a" * 16_000_000, "more_body": more_body})
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    limits = ConnectionLimits()
    protocol = type("_Protocol", (_ImpatientProtocol,), {"limits": limits})
    async with serve_asgi(send_much, http=protocol) as url:
        client = open_slow_reader(url)
        try:
            request = REQUEST if keep_alive else HEALTH
            await asyncio.to_thread(client.sendall, request)
            await asyncio.wait_for(disconnected.wait(), 10)
            await eventually(lambda: not limits._counts)
        finally:
            client.close()


async def test_client_that_reads_slowly_but_steadily_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interval ends as soon as the client has read in it."""
    size = 16_000_000

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a" * size})

    def read(most: int) -> int:
        total = 0
        while total < most and (chunk := client.recv(100_000)):
            total += len(chunk)
        return total

    monkeypatch.setattr(slow_readers, "MIN_WRITTEN_BYTES", 1)
    limits = ConnectionLimits()
    protocol = type("_Protocol", (HttpProtocol,), {"limits": limits, "write_timeout_seconds": 3600})
    async with serve_asgi(send_much, http=protocol) as url:
        client = open_slow_reader(url)
        try:
            await asyncio.to_thread(client.sendall, HEALTH)
            await eventually(lambda: limits.unsent._watches)
            [watch], total, intervals = limits.unsent._watches, 0, 0
            while (unsent := watch.get_unsent_bytes()) > size // 2:
                while watch.get_unsent_bytes() == unsent:
                    total += await asyncio.to_thread(read, 100_000)
                watch._on_timeout()
                intervals += 1
            assert intervals > 1
            assert total + await asyncio.to_thread(read, 2 * size) > size
        finally:
            client.close()


async def test_large_response_is_not_held_longer_than_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is fast enough for each interval, too slow for all."""
    disconnected = asyncio.Event()

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a" * 64_000_000})
            while (await receive())["type"] != "http.disconnect":
                pass
            disconnected.set()

    def read_steadily() -> None:
        with contextlib.suppress(OSError):
            while not disconnected.is_set() and client.recv(4_096):
                pass

    monkeypatch.setattr(slow_readers, "MIN_WRITTEN_BYTES", 1)
    protocol = type("_Protocol", (HttpProtocol,), {"write_timeout_seconds": 0.05, "max_drain_seconds": 0.3})
    async with serve_asgi(send_much, http=protocol) as url:
        client = open_slow_reader(url)
        try:
            await asyncio.to_thread(client.sendall, REQUEST)
            reading = asyncio.create_task(asyncio.to_thread(read_steadily))
            await asyncio.wait_for(disconnected.wait(), 10)
            await reading
        finally:
            client.close()


@pytest.mark.parametrize(("patient_bytes", "max_bytes"), [(30_000_000, 128_000_000), (128_000_000, 30_000_000)])
async def test_bytes_that_wait_for_slow_clients_are_bounded_in_all(
    monkeypatch: pytest.MonkeyPatch, patient_bytes: int, max_bytes: int
) -> None:
    """The oldest connections end, although each one has time left."""
    monkeypatch.setattr(slow_readers, "_PATIENCE_SECONDS", 0.2)

    async def send_much(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a" * 16_000_000})

    limits = ConnectionLimits()
    limits.unsent = UnsentBytes(patient_bytes, max_bytes)

    def measure() -> int:
        return sum(watch.get_unsent_bytes() for watch in limits.unsent._watches)

    async with serve_asgi(send_much, http=limit_connections(limits)) as url:
        clients = [open_slow_reader(url) for _ in range(6)]
        try:
            for client in clients:
                await asyncio.to_thread(client.sendall, HEALTH)
            await eventually(
                lambda: len(limits.unsent._watches) in (1, 2) and measure() <= min(patient_bytes, max_bytes)
            )
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                assert len(await response.read()) == 16_000_000
        finally:
            for client in clients:
                client.close()


async def test_search_of_many_operators_is_answered(shared_gateway: Gateway) -> None:
    queries = (
        "-" * 50,
        "- " * 50,
        '-"' * 50,
        "-a " * 200,
        '"' * 99,
        "or " * 300,
        "--- a",
        "-(" * 50,
        "!" * 50,
        "a" + "-" * 900,
    )
    for query in queries:
        for path in ("/api/v1/search", "/search"):
            for lang in ("simple", "english"):
                url = f"{shared_gateway.base_url}{path}"
                options = {"query": query, "lang": lang, "total": "true"}
                async with shared_gateway.session.get(url, params=options) as response:
                    assert response.status == 200, (query, lang, await response.text())
