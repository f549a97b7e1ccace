import asyncio
import threading

import pytest

from tools_server.thread_pool import BoundedThreadPool, ThreadedResolver


async def test_call_that_is_given_up_keeps_its_place_until_its_thread_ends() -> None:
    threads, gate, started = BoundedThreadPool(1), threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        gate.wait(30)

    first = asyncio.create_task(threads.run_blocking(wait))
    await asyncio.to_thread(started.wait, 30)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(threads.run_blocking(lambda: "second"))
    done, _ = await asyncio.wait([second], timeout=0.05)
    assert not done
    gate.set()
    async with asyncio.timeout(30):
        assert await second == "second"


async def test_what_a_thread_raises_is_raised_to_the_caller() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await BoundedThreadPool(1).run_blocking(fail)


async def test_name_is_resolved_to_addresses() -> None:
    addresses = await ThreadedResolver(BoundedThreadPool(1)).resolve("localhost", 80)
    assert {entry["host"] for entry in addresses} <= {"127.0.0.1", "::1"}
    assert addresses[0]["port"] == 80


async def test_unknown_name_is_an_error() -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whatever its number, aiohttp only knows the class
        await ThreadedResolver(BoundedThreadPool(1)).resolve("no-such-host.invalid", 80)
