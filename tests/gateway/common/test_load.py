"""Samples of the load, and when they refuse new work."""

import asyncio
import time

import pytest

from gateway.common.load import LoadMonitor, find_memory_limit, read_resident_memory
from gateway.domain.errors import Overloaded
from tests.eventually import eventually


def make_monitor(**limits: float) -> LoadMonitor:
    return LoadMonitor(
        max_lag_seconds=limits.get("lag"), max_memory_bytes=int(memory) if (memory := limits.get("memory")) else None
    )


def test_one_pause_does_not_refuse_work() -> None:
    monitor = make_monitor(lag=1.0)
    for lag in (5.0, 5.0, 0.1, 5.0, 5.0):
        monitor.record_sample(lag, None)
        monitor.check_capacity()


def test_lasting_lag_refuses_work_until_it_has_halved() -> None:
    monitor = make_monitor(lag=1.0)
    for _ in range(3):
        monitor.record_sample(1.1, None)
    monitor.record_sample(0.6, None)
    with pytest.raises(Overloaded) as refusal:
        monitor.check_capacity()
    assert refusal.value.retry_after is not None
    monitor.record_sample(0.4, None)
    monitor.check_capacity()


def test_memory_above_its_limit_refuses_work_until_it_is_freed() -> None:
    monitor = make_monitor(memory=1000)
    for _ in range(3):
        monitor.record_sample(0.0, 1001)
    monitor.record_sample(0.0, 960)
    with pytest.raises(Overloaded, match="memory"):
        monitor.check_capacity()
    monitor.record_sample(0.0, 940)
    monitor.check_capacity()


async def test_loop_that_is_really_blocked_refuses_work() -> None:
    monitor = LoadMonitor(max_lag_seconds=0.02, max_memory_bytes=None, interval_seconds=0.001)
    monitor.task.start()
    try:
        for _ in range(10):
            time.sleep(0.05)
            await asyncio.sleep(0)
        assert monitor.overload_reason is not None
        await eventually(lambda: monitor.overload_reason is None)
    finally:
        await monitor.task.stop()


def test_memory_of_this_process_is_below_the_limit_of_this_machine() -> None:
    used, limit = read_resident_memory(), find_memory_limit(1)
    if used is None:
        pytest.skip("this system has no /proc")
    assert limit is not None
    assert 10_000_000 < used < limit
    assert find_memory_limit(2) == pytest.approx(limit / 2, abs=1)


def test_idle_process_on_a_small_host_is_not_overloaded() -> None:
    used, limit = read_resident_memory(), find_memory_limit(1_000_000)
    if used is None:
        pytest.skip("this system has no /proc")
    assert limit is not None
    assert limit > used + 100_000_000
