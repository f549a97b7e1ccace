"""Admission of requests that start turns."""

import asyncio
from uuid import uuid4

import pytest

from gateway.api.rate_limit.admission import AdmissionGate
from tests.stack import Gateway


async def run_loop_passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_admission_is_first_in_first_out_and_limited_per_loop_pass() -> None:
    gate = AdmissionGate(2)
    admitted: list[int] = []

    async def enter_gate(number: int) -> None:
        await gate.wait_for_admission()
        admitted.append(number)

    tasks = [asyncio.create_task(enter_gate(number)) for number in range(7)]
    admitted_counts: list[int] = []
    while not all(task.done() for task in tasks):
        await run_loop_passes(1)
        admitted_counts.append(len(admitted))
    assert admitted == list(range(7))
    increments = [after - before for before, after in zip([0, *admitted_counts], admitted_counts, strict=False)]
    assert max(increments) == 2
    await asyncio.wait_for(gate.wait_for_admission(), 30)


async def test_cancelled_requests_use_no_admission_slot() -> None:
    gate = AdmissionGate(1)
    await gate.wait_for_admission()
    cancelled_tasks = [asyncio.create_task(gate.wait_for_admission()) for _ in range(50)]
    waiting_task = asyncio.create_task(gate.wait_for_admission())
    await run_loop_passes(1)
    for task in cancelled_tasks:
        task.cancel()
    await run_loop_passes(4)
    assert waiting_task.done()


async def test_only_requests_that_start_turns_wait_for_admission(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission_opened = asyncio.Event()
    monkeypatch.setattr(AdmissionGate, "wait_for_admission", lambda _self: admission_opened.wait())
    paths = ("/api/v1/chat", "/v1/chat/completions", "/v1/responses", "/api/ada/chat")
    start_requests = [asyncio.create_task(gateway.post(path, {"no": "turn"})) for path in paths]
    for path in ("/health", "/api/v1/models", "/api/v1/history"):
        assert (await gateway.get(path)).status == 200
    assert (await gateway.post(f"/api/v1/turns/{uuid4()}/cancel", None)).status == 404
    assert not any(task.done() for task in start_requests)
    admission_opened.set()
    assert {reply.status for reply in await asyncio.gather(*start_requests)} <= {400, 422}
