"""Clients that read streams slowly, and the memory that they hold."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sse_starlette.sse import SendTimeoutError

from gateway.agent.following.journal_window import MAX_WINDOW_BYTES
from gateway.store.turns import MAX_EVENT_BYTES
from gateway.wire import sse
from gateway.wire.sse import FrameStream, OpenStreams
from gateway_runtime.connections.disconnects import DISCONNECT_SCOPE_KEY, Disconnect
from tests.eventually import eventually
from tests.gateway.api.test_connection_limits import open_slow_reader
from tests.stack import Gateway

TEXT_BYTES, ROWS, ROW_EVENTS = 20_000, 10, 20
"""4 MB of events."""


async def store_large_turn(db: asyncpg.Connection) -> UUID:
    turn_id = uuid4()
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, completed_at)"
        " VALUES ($1::uuid, 'local', 'completed', 'x', '[]', 'openai/gpt-oss-120b', '{}', '{}', now())",
        turn_id,
    )
    start = {"type": "turn.started", "turn_id": str(turn_id), "conversation_id": None, "model": "m"}
    delta = json.dumps({"type": "text.delta", "step": 1, "text": "a" * TEXT_BYTES})
    end = {"type": "turn.completed", "finish_reason": "stop", "usage": {}, "steps": 1, "duration_ms": 1.0}
    rows = [[json.dumps(start)], *([delta] * ROW_EVENTS for _ in range(ROWS)), [json.dumps(end)]]
    first = 1
    for row in rows:
        last = first + len(row) - 1
        await db.execute("INSERT INTO turn_events VALUES ($1, $2, $3, $4)", turn_id, first, last, "\n".join(row))
        first = last + 1
    return turn_id


async def test_follower_that_does_not_read_makes_the_gateway_read_little(
    gateway: Gateway, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_id = await store_large_turn(db)
    loaded: list[int] = []
    turns = gateway.state.turn_service._subscriptions.reader._turns
    load_events = turns.load_events

    async def record(*arguments: Any) -> Any:
        entries = await load_events(*arguments)
        loaded.append(sum(len(entry.data) for entry in entries))
        return entries

    monkeypatch.setattr(turns, "load_events", record)
    client = open_slow_reader(gateway.base_url)
    try:
        request = f"GET /api/v1/turns/{turn_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await asyncio.to_thread(client.sendall, request.encode())
        await eventually(lambda: len(loaded) >= 2)
        client.setblocking(True)
        head = await asyncio.to_thread(client.recv, 1_000)
        assert b" 200 " in head
        # A second follower reads all, while the first one does not read.
        reply = await read_all(gateway, turn_id)
        [window] = gateway.state.turn_service._subscriptions.reader.list_logs()
        assert sum(len(entry.data) for entry in window.entries) <= MAX_WINDOW_BYTES + MAX_EVENT_BYTES
        assert max(loaded) <= MAX_EVENT_BYTES + ROW_EVENTS * (TEXT_BYTES + 100)
        received = len(head)
        while data := await asyncio.to_thread(client.recv, 1_000_000):
            received += len(data)
        assert received >= len(reply)
        assert reply.count(b"event: text.delta") == ROWS * ROW_EVENTS
    finally:
        client.close()


async def read_all(gateway: Gateway, turn_id: UUID) -> bytes:
    async with gateway.session.get(f"{gateway.base_url}/api/v1/turns/{turn_id}/events") as response:
        return await response.read()


class _Listener:
    is_over = True

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def send_slowly(chunks: list[bytes], *, seconds: float) -> list[int]:
    """Sizes of the writes to a client that reads the frames."""
    sizes: list[int] = []

    async def generate() -> AsyncGenerator[bytes]:
        for chunk in chunks:
            yield chunk

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sizes.append(len(message["body"]))
            await asyncio.sleep(seconds)

    async def receive() -> Any:
        await asyncio.Event().wait()

    streams = OpenStreams(ping_seconds=0.05)
    streams.task.start()
    app = SimpleNamespace(state=SimpleNamespace(open_streams=streams))
    try:
        scope = {"type": "http", "app": app, DISCONNECT_SCOPE_KEY: Disconnect()}
        await FrameStream(generate(), headers={}, listener=_Listener())(scope, receive, send)
    finally:
        await streams.task.stop()
    assert not len(streams)
    return sizes


async def test_rest_of_a_stream_has_a_deadline_after_the_turn_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes make progress, but a client would take too long for all."""
    monkeypatch.setattr(sse, "DRAIN_SECONDS", 0.2)
    async with asyncio.timeout(30):
        with pytest.raises(SendTimeoutError):
            await send_slowly([b"data: x\n\n"] * 10_000, seconds=0.01)


async def test_client_that_takes_nothing_is_left_after_two_checks() -> None:
    async with asyncio.timeout(30):
        with pytest.raises(SendTimeoutError):
            await send_slowly([b"data: x\n\n"], seconds=3600)


async def test_large_frame_is_written_in_pieces_that_count_as_progress() -> None:
    async with asyncio.timeout(30):
        sizes = await send_slowly([b"a" * 5_000_000], seconds=0.02)
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 256 * 1024
