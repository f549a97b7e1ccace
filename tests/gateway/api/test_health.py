"""Health and readiness."""

import asyncio

from gateway.common.concurrency import SupervisedTask
from tests.stack import Gateway


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
