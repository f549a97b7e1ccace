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
