"""Gateway processes that stop for longer than their lease, and go on."""

import asyncio
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from tests.e2e.cluster import Cluster, Worker, start_cluster
from tests.eventually import eventually

TURNS = 30
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3"}


@pytest.fixture
async def cluster(database_url: str) -> AsyncGenerator[Cluster]:
    async with start_cluster(database_url) as cluster:
        yield cluster


async def start_task(worker: Worker, number: int) -> None:
    """Start a turn that adds a task, and leave it."""
    async with worker.stream(f"Add a task to do thing {number}", on_disconnect="continue") as stream:
        await stream.read_until("turn.started")


async def test_frozen_worker_doubles_no_effect_when_it_continues(cluster: Cluster, db: asyncpg.Connection) -> None:
    async with cluster.run_worker(**LEASE) as frozen, cluster.run_worker(**LEASE):
        await asyncio.gather(*(start_task(frozen, number) for number in range(TURNS)))
        frozen.freeze()
        frozen_id = await db.fetchval("SELECT worker_id FROM turns LIMIT 1")

        async def have_all_ended() -> bool:
            return not await db.fetchval("SELECT count(*) FROM turns WHERE status = 'running'")

        await eventually(have_all_ended, timeout_seconds=60)
        assert await db.fetchval("SELECT count(*) FROM turns WHERE epoch = 1") > 0
        before = await db.fetch("SELECT * FROM turn_events ORDER BY turn_id, first_seq")
        frozen.thaw()
        registered = "SELECT count(*) FROM workers WHERE id = $1 AND lease_until > now()"
        await eventually(lambda: db.fetchval(registered, frozen_id), timeout_seconds=60)
        assert (await eventually(lambda: frozen.chat("What is 2+2?"))).status == 200
    after = await db.fetch(
        "SELECT turn_events.* FROM turn_events JOIN turns ON id = turn_id WHERE prompt LIKE 'Add%'"
        " ORDER BY turn_id, first_seq"
    )
    assert after == before
    assert await db.fetch("SELECT title FROM tools.tasks GROUP BY title HAVING count(*) > 1") == []
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == TURNS + 1


async def test_worker_that_was_killed_is_not_taken_over_before_its_lease_ends(
    cluster: Cluster, db: asyncpg.Connection
) -> None:
    """Another process may have its id: process ids are not compared."""
    long_lease = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "600"}
    async with cluster.run_worker(**long_lease) as killed, cluster.run_worker(**LEASE):
        async with killed.stream("count to 5000", on_disconnect="continue") as stream:
            await stream.read_until("text.delta")
        worker_id = await db.fetchval("SELECT worker_id FROM turns")
        killed.kill()
        seen_at = await db.fetchval("SELECT max(seen_at) FROM workers WHERE id <> $1", worker_id)
        later = "SELECT count(*) FROM workers WHERE seen_at > $1::timestamptz + interval '2 seconds'"
        await eventually(lambda: db.fetchval(later, seen_at))
        assert await db.fetchval("SELECT epoch FROM turns") == 0
        await db.execute("UPDATE workers SET lease_until = now() WHERE id = $1", worker_id)
        await eventually(lambda: db.fetchval("SELECT epoch FROM turns"))
