"""How turns are let in."""

import asyncio
from uuid import uuid4

import pytest

from gateway.api.rate_limit.admission import AdmissionGate
from tests.stack import Gateway


async def passes(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_admission_is_first_in_first_out_and_limited_per_loop_pass() -> None:
    entrance = AdmissionGate(2)
    inside: list[int] = []

    async def come(number: int) -> None:
        await entrance.wait_for_admission()
        inside.append(number)

    coming = [asyncio.create_task(come(number)) for number in range(7)]
    seen: list[int] = []
    while not all(task.done() for task in coming):
        await passes(1)
        seen.append(len(inside))
    assert inside == list(range(7))
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) == 2
    await asyncio.wait_for(entrance.wait_for_admission(), 30)


async def test_cancelled_requests_use_no_admission_slot() -> None:
    entrance = AdmissionGate(1)
    await entrance.wait_for_admission()
    gone = [asyncio.create_task(entrance.wait_for_admission()) for _ in range(50)]
    last = asyncio.create_task(entrance.wait_for_admission())
    await passes(1)
    for task in gone:
        task.cancel()
    await passes(4)
    assert last.done()


async def test_only_requests_that_start_turns_wait_for_admission(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()
    monkeypatch.setattr(AdmissionGate, "wait_for_admission", lambda _self: opened.wait())
    paths = ("/api/v1/chat", "/v1/chat/completions", "/v1/responses", "/api/ada/chat")
    beginning = [asyncio.create_task(gateway.post(path, {"no": "turn"})) for path in paths]
    for path in ("/health", "/api/v1/models", "/api/v1/history"):
        assert (await gateway.get(path)).status == 200
    assert (await gateway.post(f"/api/v1/turns/{uuid4()}/cancel", None)).status == 404
    assert not any(task.done() for task in beginning)
    opened.set()
    assert {reply.status for reply in await asyncio.gather(*beginning)} <= {400, 422}
