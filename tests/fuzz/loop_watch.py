"""Lag of the event loop and memory while a server is fuzzed."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import thread_time

MAX_BUSY_SECONDS = 2.0
"""Maximum processor time between turns of the loop, while traced."""
MAX_LAG_SECONDS = 15.0
"""Maximum lag, which also a loaded machine may cause."""
MAX_MEMORY_BYTES = 64 * 1024 * 1024
_INTERVAL_SECONDS = 0.02


@asynccontextmanager
async def watch_loop() -> AsyncGenerator[None]:
    """Check this event loop's lag and the peak of memory."""
    longest = busiest = 0.0

    async def measure() -> None:
        nonlocal longest, busiest
        loop = asyncio.get_running_loop()
        while True:
            expected, used = loop.time() + _INTERVAL_SECONDS, thread_time()
            await asyncio.sleep(_INTERVAL_SECONDS)
            longest = max(longest, loop.time() - expected)
            busiest = max(busiest, thread_time() - used)

    tracemalloc.start()
    task = asyncio.create_task(measure())
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= MAX_MEMORY_BYTES
        assert busiest <= MAX_BUSY_SECONDS
        assert longest <= MAX_LAG_SECONDS
    finally:
        task.cancel()
        tracemalloc.stop()
