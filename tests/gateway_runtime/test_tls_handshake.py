"""Limits on connections before the end of their TLS handshake."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from gateway_runtime.connections import tls_handshake
from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.connections.tls_handshake import make_handshakes_count
from gateway_runtime.event_loop import event_loop_factory
from gateway_runtime.http_protocol import HttpProtocol, limit_connections
from tests.certificates import create_certificate
from tests.eventually import eventually

REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    size = 16_000_000 if scope["path"] == "/much" else 0
    answer = scope["scheme"].encode() + b" " + b"a" * size + body + message["body"]
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def serve_https(directory: Path, limits: ConnectionLimits) -> AsyncGenerator[tuple[str, int]]:
    certificate = create_certificate(directory)
    config = uvicorn.Config(
        echo,
        http=limit_connections(limits),
        ssl_certfile=certificate.cert,
        ssl_keyfile=certificate.key,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    make_handshakes_count(config)
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        await serving


def make_client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def send_request(address: tuple[str, int]) -> bytes:
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*address, ssl=make_client_context())
        writer.write(REQUEST)
        response = await reader.read()
        writer.close()
    return response


def send_with_the_last_flight(address: tuple[str, int]) -> bytes:
    """Send a request in the packet that ends the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = make_client_context().wrap_bio(incoming, outgoing)
    with socket.create_connection(address, timeout=30) as client:
        while True:
            try:
                connection.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sendall(outgoing.read())
                incoming.write(client.recv(65_536))
        connection.write(REQUEST)
        client.sendall(outgoing.read())
        response = b""
        while not response.endswith(b"hello"):
            with contextlib.suppress(ssl.SSLWantReadError):
                response += connection.read(65_536)
                continue
            incoming.write(client.recv(65_536))
    return response


async def check_requests(directory: Path) -> None:
    limits = ConnectionLimits()
    async with serve_https(directory, limits) as address:
        responses = await asyncio.gather(*(send_request(address) for _ in range(20)))
        responses.append(await asyncio.to_thread(send_with_the_last_flight, address))
        assert all(response.endswith(b"https hello") for response in responses)
        await eventually(lambda: not limits._counts)


async def check_silent_clients(directory: Path) -> None:
    limits = ConnectionLimits(max_total=100, max_per_source=10)
    async with serve_https(directory, limits) as address:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tls_handshake, "HANDSHAKE_TIMEOUT_SECONDS", 0.1)
            reader, _ = await asyncio.open_connection(*address)
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        await eventually(lambda: limits._total == 0)
        silent = [await asyncio.open_connection(*address) for _ in range(10)]
        await eventually(lambda: limits._total == 10)
        with pytest.raises((OSError, ssl.SSLError)):
            await send_request(address)
        for _, writer in silent:
            writer.close()
        await eventually(lambda: limits._total == 0)
        assert (await send_request(address)).endswith(b"https hello")


async def check_slow_readers(directory: Path) -> None:
    """TLS takes over a whole answer at once."""
    limits = ConnectionLimits()
    async with serve_https(directory, limits) as address:
        client = socket.create_connection(address, timeout=30)
        with await asyncio.to_thread(make_client_context().wrap_socket, client) as connection:
            await asyncio.to_thread(connection.sendall, b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: bool(limits.unsent._watches))
            assert max(watch.get_unsent_bytes() for watch in limits.unsent._watches) > 1_000_000
            await eventually(lambda: limits._total == 0)
            assert not limits.unsent._watches
        assert (await send_request(address)).endswith(b"https hello")


@pytest.mark.parametrize("create_loop", [asyncio.new_event_loop, event_loop_factory()])
@pytest.mark.parametrize("check", [check_requests, check_silent_clients, check_slow_readers])
def test_tls_handshakes_count_as_connections_and_have_a_deadline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    create_loop: Callable[[], asyncio.AbstractEventLoop],
    check: Callable[[Path], Coroutine[None, None, None]],
) -> None:
    monkeypatch.setattr(tls_handshake, "HANDSHAKE_TIMEOUT_SECONDS", 60.0)
    if check is check_slow_readers:
        monkeypatch.setattr(HttpProtocol, "write_timeout_seconds", 0.5)
    with asyncio.Runner(loop_factory=create_loop) as runner:
        runner.run(check(tmp_path))
