"""Tests of a timeout that does not count paused time."""

import asyncio

import pytest

from gateway.common.pausable_timeout import PausableTimeout


async def test_paused_time_does_not_count() -> None:
    async with PausableTimeout(0.05) as deadline:
        with deadline.pause_timeout():
            assert deadline.is_paused
            await asyncio.sleep(0.1)
        assert not deadline.is_paused
    assert not deadline.has_expired


async def test_timeout_is_paused_until_the_last_nested_pause_ends() -> None:
    async with PausableTimeout(0.05) as deadline:
        with deadline.pause_timeout():
            with deadline.pause_timeout():
                await asyncio.sleep(0.1)
            assert deadline.is_paused
            await asyncio.sleep(0.1)
    assert not deadline.has_expired


async def test_time_after_a_pause_counts() -> None:
    deadline = PausableTimeout(0.05)

    async def work() -> None:
        async with deadline:
            with deadline.pause_timeout():
                await asyncio.sleep(0)
            await asyncio.sleep(600)

    with pytest.raises(TimeoutError):
        await work()
    assert deadline.has_expired


async def test_extension_restarts_the_timeout_up_to_its_maximum() -> None:
    async with PausableTimeout(10, max_seconds=25) as timeout:
        now = asyncio.get_running_loop().time
        started_at, inner = now(), timeout._timeout
        inner.reschedule(now() + 2)
        timeout.extend_timeout()
        assert inner.when() == pytest.approx(started_at + 10, abs=1)
        inner.reschedule(now() + 1)
        with timeout.pause_timeout():
            timeout.extend_timeout()
            assert inner.when() is None
        assert inner.when() == pytest.approx(started_at + 8, abs=1)  # 8 and 7 of 15 additional seconds
        inner.reschedule(now() + 1)
        timeout.extend_timeout()
        assert inner.when() == pytest.approx(started_at + 1, abs=1)


async def test_timeout_without_a_maximum_is_not_extended() -> None:
    async with PausableTimeout(10) as timeout:
        timeout._timeout.reschedule(when := asyncio.get_running_loop().time() + 1)
        timeout.extend_timeout()
        assert timeout._timeout.when() == when
