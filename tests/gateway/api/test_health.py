"""Health and readiness."""

import asyncio

import asyncpg

from gateway.common.concurrency import SupervisedTask
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway


async def test_ready_fails_while_a_vital_background_task_is_down(gateway: Gateway) -> None:
    async def run() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ValueError
        await asyncio.Event().wait()

    runs = list[int]()
    vital = SupervisedTask("writer", run, vital=True, min_backoff_seconds=3600)
    gateway.state.tasks.add(vital)
    ready = await gateway.get("/ready")
    assert (ready.status, ready.body["background_tasks"]) == (200, {"ok": True, "reason": None})

    vital.start()
    while not vital.is_down:
        await asyncio.sleep(0)
    ready = await gateway.get("/ready")
    assert (ready.status, ready.body["status"]) == (503, "unavailable")
    assert ready.body["background_tasks"] == {"ok": False, "reason": "failed: writer"}
    assert ready.body["database"]["ok"]

    vital.restart_now()
    while len(runs) < 2:
        await asyncio.sleep(0)
    assert (await gateway.get("/ready")).status == 200
    await vital.stop()


async def test_ready_fails_without_a_lease(database_url: str, simulator: Simulator, db: asyncpg.Connection) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        await eventually(lambda: is_ready(gateway))
        async with db.transaction():
            await db.execute("SELECT FROM workers FOR UPDATE")
            gateway.state.lease.end()
            ready = await gateway.get("/ready")
            assert (ready.status, ready.body["status"]) == (503, "unavailable")
            assert ready.body["database"] == {"ok": False, "reason": "the worker could not renew its lease"}
        await eventually(lambda: is_ready(gateway))


async def is_ready(gateway: Gateway) -> bool:
    return (await gateway.get("/ready")).status == 200
