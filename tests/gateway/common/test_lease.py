"""Tests of a worker's lease."""

import asyncio

import pytest

from gateway.common import lease as module
from gateway.common.lease import WorkerLease, read_clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the lease's clock, which the test sets."""
    now = [1000.0]
    monkeypatch.setattr(module, "read_clock", lambda: now[0])
    return now


async def test_lease_counts_from_before_its_renewal_and_less_a_tenth(now: list[float]) -> None:
    lease = WorkerLease()
    assert not lease.is_valid
    sent_at, now[0] = now[0], 1003.0
    lease.renew(sent_at, 10)
    for time, is_valid in ((1008.9, True), (1009.0, False), (1020.0, False)):
        now[0] = time
        assert lease.is_valid is is_valid
    lease.stop()


async def test_lease_that_is_not_renewed_ends_without_a_query() -> None:
    lease, ended = WorkerLease(), asyncio.Event()
    lease.on_end = ended.set
    lease.renew(read_clock(), 0.05)
    async with asyncio.timeout(10):
        await ended.wait()
    assert not lease.is_valid


async def test_renewed_lease_does_not_end() -> None:
    lease, ended = WorkerLease(), asyncio.Event()
    lease.on_end = ended.set
    lease.renew(read_clock(), 0.02)
    lease.renew(read_clock(), 60)
    other, other_ended = WorkerLease(), asyncio.Event()
    other.on_end = other_ended.set
    other.renew(read_clock(), 0.1)
    async with asyncio.timeout(10):
        await other_ended.wait()
    assert lease.is_valid
    assert not ended.is_set()
    lease.stop()
