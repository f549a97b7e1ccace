"""Programs of workers that are killed or replaced."""

import asyncio
import json
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from tests.e2e.cluster import Cluster, Worker, start_cluster
from tests.effect_server import CALLS, EffectServer, serve_effects
from tests.eventually import eventually

TURNS = 50
PAYMENTS = 3
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3"}
PROGRAM = """\
paid = []
for number in range({payments}):
    try:
        paid.append(await pay(order=f"{turn}-{{number}}"))
    except RuntimeError as error:
        paid.append(str(error))
len(paid)
"""

OPEN_QUESTION = "SELECT id FROM turn_inputs WHERE turn_id = $1 AND answer IS NULL"
HAS_STOPPED = "SELECT status IN ('waiting', 'completed') FROM turns WHERE id = $1"

pytestmark = pytest.mark.faults


@pytest.fixture
async def cluster(database_url: str) -> AsyncGenerator[Cluster]:
    async with start_cluster(database_url) as cluster:
        yield cluster


@pytest.fixture
async def effects() -> AsyncGenerator[EffectServer]:
    async with serve_effects() as server:
        yield server


def make_prompt(turn: int) -> str:
    """Make the prompt of a program that pays its own orders."""
    code = PROGRAM.format(turn=turn, payments=PAYMENTS)
    return f"call run_python {json.dumps({'code': code})}"


async def start_program(worker: Worker, turn: int) -> None:
    async with worker.stream(make_prompt(turn), code="only", on_disconnect="continue") as stream:
        await stream.read_until("turn.started")


async def test_killed_worker_s_programs_make_no_answered_call_twice(
    cluster: Cluster, db: asyncpg.Connection, effects: EffectServer
) -> None:
    settings = LEASE | {"MCP_SERVER_URL": effects.url}
    async with cluster.run_worker(**settings) as killed, cluster.run_worker(**settings):
        await asyncio.gather(*(start_program(killed, turn) for turn in range(TURNS)))
        await eventually(lambda: effects.payments.total() >= TURNS, timeout_seconds=60)
        killed.kill()

        async def have_all_ended() -> bool:
            return not await db.fetchval("SELECT count(*) FROM turns WHERE status = 'running'")

        await eventually(have_all_ended, timeout_seconds=120)
    assert await db.fetchval("SELECT count(*) FROM turns WHERE epoch > 0") > 0
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == TURNS
    assert effects.check_payments(await db.fetch(CALLS)).total() == TURNS * PAYMENTS
    results = await db.fetch("SELECT outcome FROM tool_calls WHERE tool = 'run_python'")
    assert [result["outcome"] for result in results] == ["ok"] * TURNS


async def test_program_that_waits_for_a_person_goes_on_after_all_workers_were_replaced(
    cluster: Cluster, db: asyncpg.Connection, effects: EffectServer
) -> None:
    settings = LEASE | {"MCP_SERVER_URL": effects.url}
    async with cluster.run_worker(**settings) as first:
        reply = await first.chat(make_prompt(1), code="only", approval="always")
        turn_id = reply.body["turn_id"]
        first.kill()
    for number in range(PAYMENTS):
        async with cluster.run_worker(**settings) as worker:
            question = await eventually(lambda: db.fetchval(OPEN_QUESTION, turn_id))
            await worker.post(f"/api/v1/turns/{turn_id}/input", {"input_id": str(question), "action": "accept"})
            await eventually(lambda: effects.payments[f"1-{number}"])  # noqa: B023 - called before the next number
            await eventually(lambda: db.fetchval(HAS_STOPPED, turn_id))
            worker.kill()
    assert await db.fetchval("SELECT status FROM turns WHERE id = $1", turn_id) == "completed"
    assert effects.payments == {f"1-{number}": 1 for number in range(PAYMENTS)}
