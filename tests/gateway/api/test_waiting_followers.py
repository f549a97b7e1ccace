"""Many followers of turns that wait."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.agent.following import journal_reader
from tests.eventually import eventually
from tests.gateway.api.test_turns import follow_turn
from tests.stack import Gateway, Stream

FOLLOWERS = 50


async def store_waiting_turn(db: asyncpg.Connection) -> UUID:
    turn_id = uuid4()
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
        " VALUES ($1::uuid, 'local', 'waiting', 'x', '[]', 'openai/gpt-oss-120b', '{}', '{}')",
        turn_id,
    )
    started = {"type": "turn.started", "turn_id": str(turn_id), "conversation_id": None, "model": "m"}
    question = {"type": "input.required", "input_id": str(uuid4()), "call_id": "c", "kind": "approval", "message": "?"}
    await insert_events(db, turn_id, 1, started, question)
    return turn_id


async def insert_events(db: asyncpg.Connection, turn_id: UUID, first: int, *events: dict[str, Any]) -> None:
    payload = "\n".join(map(json.dumps, events))
    await db.execute(
        "INSERT INTO turn_events VALUES ($1, $2, $3, $4)", turn_id, first, first + len(events) - 1, payload
    )


async def end_turn(db: asyncpg.Connection, turn_id: UUID) -> None:
    """End a turn as another worker would, whose message is lost."""
    end = {"type": "turn.completed", "finish_reason": "stop", "usage": {}, "steps": 1, "duration_ms": 1.0}
    await insert_events(db, turn_id, 3, end)
    await db.execute("UPDATE turns SET status = 'completed', epoch = epoch + 1 WHERE id = $1", turn_id)


async def open_followers(gateway: Gateway, stack: AsyncExitStack, turn_ids: list[UUID]) -> list[Stream]:
    streams = [await stack.enter_async_context(follow_turn(gateway, str(turn_id))) for turn_id in turn_ids]
    await asyncio.gather(*(stream.read_until("input.required") for stream in streams))
    return streams


async def read_pings(stream: Stream, number: int) -> None:
    async for line in stream.response.content:
        number -= line.startswith(b": ping")
        if number == 0:
            return


async def test_followers_share_the_timer_of_their_pings_and_the_poll_of_their_turns(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    gateway.state.open_streams._ping_seconds = 0.1
    turn_ids = [await store_waiting_turn(db) for _ in range(FOLLOWERS)]
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        await open_followers(gateway, stack, turn_ids[:2])
        tasks = len(asyncio.all_tasks())
        streams = await open_followers(gateway, stack, turn_ids[2:])
        await eventually(
            lambda: len(asyncio.all_tasks()) - tasks <= 2 * len(streams) + 8
        )  # the request, its disconnect
        assert len(gateway.state.open_streams) == FOLLOWERS
        await asyncio.gather(*(read_pings(stream, 3) for stream in streams))
    await eventually(lambda: len(gateway.state.open_streams) == 0)
    await eventually(lambda: len(gateway.state.turn_service._subscriptions.reader) == 0)


async def test_turns_that_wait_are_looked_at_together_and_read_when_they_wake(
    gateway: Gateway, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reader, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(journal_reader, "_BATCH_SIZE", 20)
    turns, reads, looks = gateway.state.turns, [], []
    load_events, find_woken = turns.load_events, turns.find_woken

    async def record_read(*arguments: Any) -> Any:
        reads.append(arguments)
        return await load_events(*arguments)

    async def record_look(epochs: dict[UUID, int]) -> Any:
        looks.append(len(epochs))
        return await find_woken(epochs)

    monkeypatch.setattr(turns, "load_events", record_read)
    monkeypatch.setattr(turns, "find_woken", record_look)
    turn_ids = [await store_waiting_turn(db) for _ in range(FOLLOWERS)]
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        streams = await open_followers(gateway, stack, turn_ids)
        await eventually(lambda: looks[-3:] == [20, 20, 10])
        reads.clear()
        looks.clear()
        await eventually(lambda: len(looks) > 6)
        assert not reads
        await end_turn(db, turn_ids[30])
        await streams[30].read_until("turn.completed")
        assert {turn_id for turn_id, _ in reads} == {turn_ids[30]}


async def test_second_follower_of_a_turn_that_waits_gets_its_past(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id = await store_waiting_turn(db)
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        first = await open_followers(gateway, stack, [turn_id])
        [window] = gateway.state.turn_service._subscriptions.reader.list_logs()
        await eventually(lambda: not window.entries)  # nobody needs them now
        second = await open_followers(gateway, stack, [turn_id])
        await end_turn(db, turn_id)
        for stream in (*first, *second):
            await stream.read_until("turn.completed")
            assert [event.id for event in stream.received_events] == [1, 2, 3]
