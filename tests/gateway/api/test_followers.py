"""Followers of turns on other workers while the database cannot be read."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.gateway.api.test_refused_writes import RETRY_SECONDS, TERMINATE, frozen, read_frames
from tests.gateway.api.test_turns import follow_turn, join_text
from tests.stack import Gateway, serve_gateway

MESSAGES = [{"role": "user", "content": "count to 5000"}]


@asynccontextmanager
async def closed_to_connections(db: asyncpg.Connection) -> AsyncGenerator[None]:
    change = "UPDATE pg_database SET datallowconn = $1 WHERE datname = current_database()"
    await db.execute(change, False)
    await db.execute(TERMINATE)
    try:
        yield
    finally:
        await db.execute(change, True)


SETTINGS: dict[str, Any] = {
    "storage_retry_seconds": RETRY_SECONDS,
    "database_statement_timeout_seconds": RETRY_SECONDS,
    "database_silence_timeout_seconds": 2 * RETRY_SECONDS,
}


@pytest.fixture
async def workers(database_url: str, slow_simulator: Simulator, tools_url: str) -> AsyncGenerator[list[Gateway]]:
    """Two gateways that soon stop trying to use their database."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(serve_gateway(database_url, slow_simulator, tools_url, **SETTINGS))
            for _ in range(2)
        ]


@pytest.mark.parametrize("outage", [closed_to_connections, frozen], ids=["no connections", "frozen"])
async def test_followers_end_when_the_turn_cannot_be_read(
    workers: list[Gateway],
    db: asyncpg.Connection,
    outage: Callable[[asyncpg.Connection], AbstractAsyncContextManager[None]],
) -> None:
    first_worker, second_worker = workers
    started, headers = asyncio.Event(), {"Idempotency-Key": "k"}
    async with AsyncExitStack() as stack:
        body = {"input": MESSAGES, "stream": True, "background": False}
        response = asyncio.create_task(read_frames(first_worker, "/v1/responses", body, started, headers=headers))
        await started.wait()
        followed = asyncio.create_task(
            read_frames(second_worker, "/v1/responses", body, asyncio.Event(), headers=headers)
        )
        turn_id = str(await db.fetchval("SELECT id FROM turns"))
        native = await stack.enter_async_context(follow_turn(second_worker, turn_id))
        await native.read_until("text.delta")
        waiting = asyncio.create_task(second_worker.post("/api/v1/chat", {"messages": MESSAGES}, headers=headers))
        async with outage(db), asyncio.timeout(40):
            async for _ in native.read_events():
                pass
            frames, reply = await followed, await waiting
            await response
    assert (native.received_events[-1].type, native.received_events[-1].data["reason"]) == (
        "stream.closing",
        "storage_unavailable",
    )
    assert (frames[-1]["type"], frames[-1]["code"]) == ("error", "storage_unavailable")
    assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")


async def test_follower_continues_after_a_lost_connection(workers: list[Gateway], db: asyncpg.Connection) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 150", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        async with asyncio.timeout(40), follow_turn(second_worker, turn_id) as follower:
            await follower.read_until("text.delta")
            for _ in range(3):
                await db.execute(TERMINATE)
            await follower.read_until("turn.completed")
    assert join_text(follower.received_events) == await db.fetchval("SELECT response FROM turns")


async def test_follower_ends_at_an_event_that_cannot_be_read(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id = (await gateway.chat("Hello")).body["turn_id"]
    unknown = json.dumps({"type": "turn.unheard_of"})
    await db.execute("UPDATE turn_events SET payload = $1, last_seq = first_seq WHERE first_seq > 1", unknown)
    async with asyncio.timeout(30), follow_turn(gateway, turn_id) as stream:
        events = [event async for event in stream.read_events()]
    assert events[-1].type == "stream.closing"
    assert events[-1].data["reason"] in ("internal_error", "turn_unreadable")


async def test_request_after_a_turn_that_cannot_be_read_is_told_so(gateway: Gateway, db: asyncpg.Connection) -> None:
    first = (await gateway.chat("Hello", conversation_id="new")).body
    await db.execute("""UPDATE turns SET messages = '[{"role": "alien"}]'""")
    reply = await gateway.chat("Hello again", conversation_id=first["conversation_id"])
    assert (reply.status, reply.body["error"]["code"]) == (500, "turn_unreadable")
    assert (await gateway.chat("Hello", conversation_id="new")).status == 200
