"""WebSocket clients that do not read, or send endless messages."""

import asyncio
import socket
from typing import Any

import pytest

from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.connections.websockets import MAX_FRAGMENTS, WebSocketProtocol
from gateway_runtime.http_protocol import limit_connections
from tests.eventually import eventually
from tests.stack import serve_asgi
from tests.web_socket_client import CONTINUATION, PING, TEXT, build_frame, connect

MAX_BUFFER_BYTES = 1_000_000


class _Protocol(WebSocketProtocol):
    """Remembers its fullest buffer."""

    write_timeout_seconds = 0.3
    fullest = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        _Protocol.fullest = max(_Protocol.fullest, self.transport.get_write_buffer_size())


async def answer_all(scope: Any, receive: Any, send: Any) -> None:
    """Answer each message with eight megabytes, and "end" with the end."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "bytes": b"a" * 8_000_000})
        if message.get("text") == "end":
            return


def send_until_closed(client: socket.socket, data: bytes) -> None:
    with client:
        try:
            while True:
                client.sendall(data)
        except ConnectionError:
            return


PONG = build_frame(0xA)
"""A frame that nobody answers."""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(b"", build_frame(PING, b"a" * 125) * 400, id="pings"),
        pytest.param(
            build_frame(TEXT, b"a", is_final=False),
            build_frame(CONTINUATION, is_final=False) * MAX_FRAGMENTS,
            id="empty fragments",
        ),
        pytest.param(build_frame(TEXT, b"go"), PONG, id="answer"),
        pytest.param(build_frame(TEXT, b"end"), PONG, id="answer and end"),
    ],
)
async def test_client_that_does_not_read_is_disconnected(first: bytes, then: bytes) -> None:
    limits = ConnectionLimits()
    protocol = type("_LimitedProtocol", (_Protocol,), {"limits": limits})
    _Protocol.fullest = 0
    async with asyncio.timeout(60), serve_asgi(answer_all, http=limit_connections(limits), ws=protocol) as url:
        client = await asyncio.to_thread(connect, url)
        await asyncio.to_thread(client.sendall, first)
        await asyncio.to_thread(send_until_closed, client, then)
        await eventually(lambda: not limits._counts)
    assert _Protocol.fullest <= (MAX_BUFFER_BYTES if then != PONG else 9_000_000)
    assert not limits.unsent._watches
