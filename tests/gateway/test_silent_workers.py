"""Requests of legacy MCP sessions whose worker accepts connections and is silent."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from gateway.api.mcp.session_forwarding import WorkerForwarder
from gateway.common.timeouts import Timeouts
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.test_mcp_session_forwarding import INITIALIZE_REQUEST, LIST_REQUEST, MCP_HEADERS
from tests.stack import TIMEOUTS, Gateway, serve_gateway

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENT = replace(TIMEOUTS, forwarding=3600.0, forwarding_silence=3600.0)


@asynccontextmanager
async def serve_worker(gateway: Gateway, serve: Serve) -> AsyncGenerator[dict[str, str]]:
    """Listen as another worker; yields the headers of a session of it."""
    forwarder = gateway.state.mcp._forwarder
    await forwarder.start_listening()
    worker = uuid4().hex
    server = await asyncio.start_unix_server(serve, forwarder._directory / worker, backlog=4)
    try:
        yield MCP_HEADERS | {"Mcp-Session-Id": f"{uuid4().hex}-{worker}"}
    finally:
        server.close()
        (forwarder._directory / worker).unlink()


async def read_frame(reader: asyncio.StreamReader) -> Any:
    return msgspec.msgpack.decode(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))


def encode_frame(message: Any) -> bytes:
    frame = msgspec.msgpack.encode(message)
    return len(frame).to_bytes(4, "big") + frame


async def write_frame(writer: asyncio.StreamWriter, message: Any) -> None:
    writer.write(encode_frame(message))
    await writer.drain()


async def be_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    await asyncio.sleep(3600)


@pytest.fixture
def timeouts(request: pytest.FixtureRequest) -> Timeouts:
    return getattr(request, "param", replace(TIMEOUTS, forwarding=0.3, forwarding_silence=0.3))


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, timeouts: Timeouts) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, None, timeouts=timeouts) as gateway:
        yield gateway


@pytest.mark.parametrize("length", [1, 900_000], ids=["small", "larger than the buffers"])
async def test_request_without_a_response_gets_503(gateway: Gateway, length: int) -> None:
    body = LIST_REQUEST | {"params": {"cursor": "x" * length}}
    async with (
        serve_worker(gateway, be_silent) as headers,
        asyncio.timeout(30),
        gateway.session.post(f"{gateway.base_url}/mcp", json=body, headers=headers) as response,
    ):
        error = (await response.json())["error"]
        assert (response.status, error["code"], response.headers["Retry-After"]) == (503, "session_unavailable", "5")


async def test_worker_that_ends_before_its_response_gives_503_and_then_404(gateway: Gateway) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        writer.close()

    async with (
        serve_worker(gateway, end) as headers,
        gateway.session.post(f"{gateway.base_url}/mcp", json=LIST_REQUEST, headers=headers) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (503, "session_unavailable")
    async with gateway.session.post(f"{gateway.base_url}/mcp", json=LIST_REQUEST, headers=headers) as response:
        assert response.status == 404


async def test_worker_sends_nothing_to_a_worker_that_has_left(gateway: Gateway) -> None:
    """The application does not notice at once that its client has left."""
    has_sent, has_left, failures = asyncio.Event(), asyncio.Event(), list[Exception]()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        has_sent.set()
        await has_left.wait()
        try:
            for _ in range(3):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except Exception as error:
            failures.append(error)
        has_left.clear()

    forwarder = WorkerForwarder(uuid4(), "a database of its own", answer, TIMEOUTS)
    await forwarder.start_listening()
    try:
        _reader, writer = await asyncio.open_unix_connection(forwarder._directory / forwarder.name)
        await write_frame(writer, {"scope": {}, "principal": {"user": "ada"}, "body": b""})
        async with asyncio.timeout(30):
            await has_sent.wait()
            writer.transport.abort()
            has_left.set()
            await eventually(lambda: not has_left.is_set())
    finally:
        await forwarder.close()
    assert failures == []


@pytest.mark.parametrize("timeouts", [replace(TIMEOUTS, forwarding_silence=0.3)], indirect=True, ids=["silence"])
async def test_response_that_becomes_silent_is_ended(gateway: Gateway) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        headers = [(b"content-type", b"text/event-stream")]
        start = encode_frame({"type": "http.response.start", "status": 200, "headers": headers})
        ping = encode_frame({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        writer.write(start + ping)  # at once, so that no silence is between them
        await be_silent(reader, writer)

    async with (
        serve_worker(gateway, begin) as headers,
        asyncio.timeout(30),
        gateway.session.get(f"{gateway.base_url}/mcp", headers=headers) as response,
    ):
        assert await response.read() == b": ping\n\n"


@pytest.mark.parametrize("timeouts", [PATIENT], indirect=True, ids=["patient"])
async def test_request_whose_client_leaves_is_broken_off(gateway: Gateway) -> None:
    broken_off = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        received.set()
        assert not await reader.read()
        broken_off.set()

    received = asyncio.Event()
    async with serve_worker(gateway, wait_for_end) as headers, asyncio.timeout(30):
        async with aiohttp.ClientSession() as client:
            post = client.post(f"{gateway.base_url}/mcp", json=LIST_REQUEST, headers=headers)
            request = asyncio.create_task(post.__aenter__())
            await received.wait()
            request.cancel()
        await broken_off.wait()
        await eventually(lambda: not gateway.state.mcp._forwarder._forward_writers)


@pytest.mark.parametrize("timeouts", [PATIENT], indirect=True, ids=["patient"])
async def test_request_that_was_given_up_is_not_served(gateway: Gateway) -> None:
    """The worker was frozen, and reads the request late."""
    url = f"{gateway.base_url}/mcp"
    async with gateway.session.post(url, json=INITIALIZE_REQUEST, headers=MCP_HEADERS) as response:
        session, _, worker = response.headers["Mcp-Session-Id"].rpartition("-")
    frames: list[Any] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames.append(await read_frame(reader))
        writer.close()

    async with (
        serve_worker(gateway, record) as headers,
        gateway.session.post(url, json=LIST_REQUEST, headers=headers) as response,
    ):
        assert response.status == 503
    [frame] = frames
    frame["scope"]["headers"] = [
        (name, f"{session}-{worker}".encode() if name == b"mcp-session-id" else value)
        for name, value in frame["scope"]["headers"]
    ]
    forwarder = gateway.state.mcp._forwarder
    for is_late in (True, False):
        frame["expires_at"] = time.clock_gettime(time.CLOCK_BOOTTIME) + (-1 if is_late else 60)
        reader, writer = await asyncio.open_unix_connection(forwarder._directory / forwarder.name)
        async with asyncio.timeout(30):
            await write_frame(writer, frame)
            assert await reader.read(1) == (b"" if is_late else b"\x00")
        writer.close()
