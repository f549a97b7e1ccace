"""Waits for conditions that have no event.

Examples are another connection's commit, the end of a process and a state behind HTTP.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

TIMEOUT_SECONDS = 30.0
"""Timeout of a condition, large enough for a stalled machine."""
POLL_SECONDS = 0.01

Result = TypeVar("Result")


async def eventually(
    check: Callable[[], Awaitable[Result] | Result], *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Result:
    """Poll `check` until its result is true, and return the result.

    `check` is a function or a coroutine function.

    Raises:
        AssertionError: no true result in time; the message contains the last result.
    """
    result: Result | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                answer = check()
                result = await answer if inspect.isawaitable(answer) else answer
                if result:
                    return result
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise AssertionError(f"not within {timeout_seconds:g} seconds; returned last: {result!r}") from error


def eventually_blocking(check: Callable[[], Result], *, timeout_seconds: float = TIMEOUT_SECONDS) -> Result:
    """Poll `check` like `eventually`, in tests without an event loop."""
    deadline = time.monotonic() + timeout_seconds
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} seconds; returned last: {result!r}"
        time.sleep(POLL_SECONDS)
    return result
