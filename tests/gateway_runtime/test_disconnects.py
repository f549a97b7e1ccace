"""Tests of how `HttpProtocol` reports that a client has left."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from gateway_runtime.connections.disconnects import get_disconnect
from gateway_runtime.request_body import read_body
from tests.eventually import eventually
from tests.stack import serve_asgi


class WaitingApp:
    """Reads each request, and then waits for its client to disconnect."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.read: list[str] = []
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        disconnected = asyncio.Event()
        get_disconnect(scope).add_callback(disconnected.set)
        self.begun.append(path)
        await read_body(scope, receive, max_bytes=1_000_000, timeout_seconds=30)
        self.read.append(path)
        await self.respond(send, disconnected)
        self.left.append(path)

    async def respond(self, send: Any, disconnected: asyncio.Event) -> None:
        await disconnected.wait()


class StreamingApp(WaitingApp):
    """Streams meanwhile."""

    async def respond(self, send: Any, disconnected: asyncio.Event) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not disconnected.is_set():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)


async def send_and_leave(url: str, *parts: tuple[bytes, Callable[[], Any]]) -> None:
    """Send each part, and wait for its check; then close the connection."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        for part, check in parts:
            writer.write(part)
            await writer.drain()
            await eventually(check)
    finally:
        writer.close()


async def test_disconnect_after_a_large_body_is_noticed() -> None:
    app, body = WaitingApp(), bytes(200_000)
    head = f"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with asyncio.timeout(60), serve_asgi(app) as url:
        await send_and_leave(url, (head, lambda: app.begun), (body, lambda: app.read))
        await eventually(lambda: app.left == ["/a"])


async def test_disconnect_is_reported_to_the_first_of_several_requests() -> None:
    app, request = StreamingApp(), b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
    async with asyncio.timeout(60), serve_asgi(app) as url:
        await send_and_leave(url, (request % b"a" + request % b"b", lambda: app.read))
        await eventually(lambda: app.left == ["/a"])
    assert app.begun == ["/a"]


async def test_disconnect_is_reported_to_the_second_request_of_a_connection() -> None:
    class ReplyingApp(WaitingApp):
        async def respond(self, send: Any, disconnected: asyncio.Event) -> None:
            if len(self.read) > 1:
                await disconnected.wait()
                return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    app, request = ReplyingApp(), b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
    async with asyncio.timeout(60), serve_asgi(app) as url:
        await send_and_leave(url, (request % b"a" + request % b"b", lambda: len(app.read) == 2))
        await eventually(lambda: app.left == ["/a", "/b"])
