"""Streams of turns whose writes the database refuses."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator, SimulatorSettings, serve_simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import join_text, read_turn_events
from tests.processes import freeze_process
from tests.stack import Event, Gateway, serve_gateway

RETRY_SECONDS = 2.0
MESSAGES = [{"role": "user", "content": "count to 100"}]
LONG = [{"role": "user", "content": "count to 1200"}]
ENDLESS = [{"role": "user", "content": "count to 5000"}]
Outage = Callable[[asyncpg.Connection], AbstractAsyncContextManager[None]]
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


@asynccontextmanager
async def read_only(db: asyncpg.Connection) -> AsyncGenerator[None]:
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await db.execute(TERMINATE)
    yield
    await db.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await db.execute(TERMINATE)


@asynccontextmanager
async def refused_insert(db: asyncpg.Connection) -> AsyncGenerator[None]:
    """Refuse events with the error of a revoked privilege."""
    await db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'permission denied' USING ERRCODE = '42501'; END $$"
    )
    await db.execute("CREATE TRIGGER refuse BEFORE INSERT ON turn_events EXECUTE FUNCTION refuse()")
    yield
    await db.execute("DROP FUNCTION refuse CASCADE")


@asynccontextmanager
async def slow_insert(db: asyncpg.Connection) -> AsyncGenerator[None]:
    await db.execute(
        "CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$"
    )
    await db.execute("CREATE TRIGGER stall BEFORE INSERT ON turn_events FOR EACH ROW EXECUTE FUNCTION stall()")
    yield
    await db.execute(TERMINATE)
    await db.execute("DROP FUNCTION stall CASCADE")


@asynccontextmanager
async def frozen(db: asyncpg.Connection) -> AsyncGenerator[None]:
    postmaster = read_parent(await db.fetchval("SELECT pg_backend_pid()"))
    pids = [postmaster, *list_children(postmaster)]
    for pid in pids:
        freeze_process(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def read_parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def list_children(parent: int) -> list[int]:
    pids: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if read_parent(int(entry.name)) == parent:
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


OUTAGES: dict[str, Outage] = {
    "read-only": read_only,
    "privilege revoked": refused_insert,
    "statements too slow": slow_insert,
    "frozen": frozen,
}


@pytest.fixture
async def simulator() -> AsyncGenerator[Simulator]:
    async with serve_simulator(SimulatorSettings(tokens_per_second=500, first_token_delay=0)) as running:
        yield running


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(
        database_url, simulator, tools_url, heartbeat_seconds=0.5, storage_retry_seconds=RETRY_SECONDS
    ) as running:
        yield running


async def read_frames(gateway: Gateway, path: str, body: Any, started: asyncio.Event, **options: Any) -> list[Any]:
    """Read a stream to its end; its first text sets `started`."""
    frames: list[Any] = []
    async with gateway.session.post(f"{gateway.base_url}{path}", json=body, **options) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: "):
                frames.append("[DONE]" if b"[DONE]" in line else json.loads(line[6:]))
                if b"text" in line or b"content" in line:
                    started.set()
    return frames


async def stop_all_streams(
    gateway: Gateway, outage: AbstractAsyncContextManager[None], messages: Any, check: Callable[[], Awaitable[None]]
) -> tuple[list[Event], list[Any], list[Any]]:
    """Start a stream in each format, break the database, read them all."""
    chat_started, response_started = asyncio.Event(), asyncio.Event()
    chat = asyncio.create_task(
        read_frames(gateway, "/v1/chat/completions", {"messages": messages, "stream": True}, chat_started)
    )
    responses = asyncio.create_task(
        read_frames(gateway, "/v1/responses", {"input": messages, "stream": True}, response_started)
    )
    async with AsyncExitStack() as stack:
        native = await stack.enter_async_context(gateway.stream(messages=messages, on_disconnect="continue"))
        await native.read_until("text.delta")
        await asyncio.gather(chat_started.wait(), response_started.wait())
        gateway.simulator.pause_streams()
        async with outage, asyncio.timeout(40):
            gateway.simulator.resume_streams()
            async for _ in native.read_events():
                pass
            frames = await asyncio.gather(chat, responses)
            await check()
    return native.received_events, *frames


@pytest.mark.parametrize("messages", [MESSAGES, ENDLESS], ids=["answer ends meanwhile", "answer goes on"])
@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
async def test_streams_end_without_an_end_of_the_turn_while_writes_are_refused(
    gateway: Gateway,
    simulator: Simulator,
    db: asyncpg.Connection,
    outage: Outage,
    messages: Any,
) -> None:
    async def check() -> None:
        await simulator.wait_until(lambda s: s.open_streams == 0)

    native, chat, responses = await stop_all_streams(gateway, outage(db), messages, check)
    assert (native[-1].type, native[-1].data["reason"]) == ("stream.closing", "storage_unavailable")
    assert not [event for event in native if event.type == "turn.completed" or event.data == "[DONE]"]
    assert chat[-1]["error"]["code"] == "storage_unavailable"
    assert not [chunk for chunk in chat if chunk == "[DONE]" or (chunk.get("choices") or [{}])[0].get("finish_reason")]
    assert (responses[-1]["type"], responses[-1]["code"]) == ("error", "storage_unavailable")
    assert not [event for event in responses if event["type"] == "response.completed"]


@pytest.mark.parametrize(("messages", "model_calls"), [(MESSAGES, 3), (LONG, 6)], ids=["answer known", "answer lost"])
@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
async def test_stopped_turn_is_completed_once_when_the_database_is_back(
    gateway: Gateway, simulator: Simulator, db: asyncpg.Connection, outage: Outage, messages: Any, model_calls: int
) -> None:
    async def check() -> None:
        assert len(simulator.requests) == 3

    native, _, _ = await stop_all_streams(gateway, outage(db), messages, check)

    async def have_completed() -> bool:
        return await db.fetchval("SELECT count(*) = 3 FROM turns WHERE status = 'completed'")

    await eventually(have_completed)
    seen = [event for event in native if event.id is not None]
    turn_id = seen[0].data["turn_id"]
    events = seen + await read_turn_events(gateway, turn_id, params={"after": str(seen[-1].id)})
    numbers = [event.id for event in events[:-1]]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    assert join_text(events) == await db.fetchval("SELECT response FROM turns WHERE id = $1::uuid", turn_id)
    assert join_text(await read_turn_events(gateway, turn_id)) == join_text(events)
    assert [event.type for event in events[-2:]] == ["turn.completed", None]
    assert await db.fetchval("SELECT count(*) FROM turn_usage") == 3
    assert len(simulator.requests) == model_calls
