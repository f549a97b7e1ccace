"""Order of waiting requests when a worker process freezes or is killed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pytest

from tests.e2e.cluster import Cluster, Worker
from tests.eventually import eventually
from tests.stack import Reply


@asynccontextmanager
async def keep_busy(worker: Worker) -> AsyncGenerator[str]:
    """Run a turn in a new conversation; yield the conversation's id."""
    async with worker.stream("count to 5000", conversation_id="new") as stream:
        started = (await stream.read_until("turn.started")).data
        yield started["conversation_id"]
        assert (await worker.post(f"/api/v1/turns/{started['turn_id']}/cancel", None)).status == 200


async def send_waiting(
    db: asyncpg.Connection, worker: Worker, prompt: str, conversation_id: str
) -> asyncio.Task[Reply]:
    """Send a request; return it once it has its ticket."""
    tickets = await db.fetchval("SELECT count(*) FROM conversation_waiters")
    request = asyncio.create_task(worker.chat(prompt, conversation_id=conversation_id))
    await eventually(lambda: db.fetchval("SELECT count(*) > $1 FROM conversation_waiters", tickets))
    return request


async def test_frozen_worker_keeps_the_place_of_its_request(cluster: Cluster, db: asyncpg.Connection) -> None:
    async with cluster.run_worker() as first, cluster.run_worker() as second:
        async with keep_busy(second) as conversation_id:
            frozen = await send_waiting(db, first, "Frozen", conversation_id)
            second_in_line = await send_waiting(db, second, "Second", conversation_id)
            first.freeze()
        try:
            rejection = await second.chat("Late", conversation_id=conversation_id, if_busy="reject")
            assert (rejection.status, rejection.body["error"]["code"]) == (409, "conversation_busy")
            late = await send_waiting(db, second, "Late", conversation_id)
            assert await db.fetchval("SELECT count(*) FROM turns") == 1
        finally:
            first.thaw()
        async with asyncio.timeout(60):
            replies = await asyncio.gather(frozen, second_in_line, late)
        assert [reply.status for reply in replies] == [200] * 3
    prompts = [row["prompt"] for row in await db.fetch("SELECT prompt FROM turns ORDER BY position OFFSET 1")]
    assert prompts == ["Frozen", "Second", "Late"]


async def test_request_of_a_killed_worker_blocks_no_other(cluster: Cluster, db: asyncpg.Connection) -> None:
    settings = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3"}
    async with cluster.run_worker(**settings) as first, cluster.run_worker(**settings) as second:
        async with keep_busy(second) as conversation_id:
            killed = await send_waiting(db, first, "Killed", conversation_id)
            waiting = [await send_waiting(db, second, f"Prompt {n}", conversation_id) for n in range(2)]
            first.kill()
        async with asyncio.timeout(60):
            assert [reply.status for reply in await asyncio.gather(*waiting)] == [200] * 2
        with pytest.raises(aiohttp.ClientConnectionError):
            await killed
    prompts = [row["prompt"] for row in await db.fetch("SELECT prompt FROM turns ORDER BY position OFFSET 1")]
    assert prompts == ["Prompt 0", "Prompt 1"]
