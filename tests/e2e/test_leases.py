"""Gateway processes that stop for longer than their lease, and go on."""

import asyncio
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from tests.e2e.cluster import Cluster, Worker, start_cluster
from tests.effect_server import CALLS, EffectServer, make_payment_prompt, serve_effects
from tests.eventually import eventually

TURNS = 30
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3"}


@pytest.fixture
async def cluster(database_url: str) -> AsyncGenerator[Cluster]:
    async with start_cluster(database_url) as cluster:
        yield cluster


@pytest.fixture
async def effects() -> AsyncGenerator[EffectServer]:
    async with serve_effects() as server:
        yield server


async def start_payments(worker: Worker, number: int) -> None:
    """Start a turn that pays orders one after another, and leave it."""
    prompt = make_payment_prompt(number)
    async with worker.stream(prompt, parallel_tool_calls=False, on_disconnect="continue") as stream:
        await stream.read_until("turn.started")


async def test_frozen_worker_doubles_no_effect_when_it_continues(
    cluster: Cluster, db: asyncpg.Connection, effects: EffectServer
) -> None:
    settings = LEASE | {"MCP_SERVER_URL": effects.url}
    async with cluster.run_worker(**settings) as frozen, cluster.run_worker(**settings):
        await asyncio.gather(*(start_payments(frozen, number) for number in range(TURNS)))
        await eventually(lambda: effects.payments.total() >= TURNS // 2)
        frozen.freeze()
        frozen_id = await db.fetchval("SELECT worker_id FROM turns WHERE epoch = 0 LIMIT 1")

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
        "SELECT turn_events.* FROM turn_events JOIN turns ON id = turn_id WHERE prompt LIKE 'call pay%'"
        " ORDER BY turn_id, first_seq"
    )
    assert after == before
    outcomes = effects.check_payments(await db.fetch(CALLS))
    assert outcomes.total() == 3 * TURNS
    assert outcomes["unknown"] > 0
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
