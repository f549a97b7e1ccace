"""Waits with a time limit, and pauses between attempts."""

import asyncio
import math
import random
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Literal, Self, TypeVar

import anyio

T = TypeVar("T")


class LightEvent:
    """Event like asyncio's that takes little memory.

    asyncio's takes 0.9 kB, most of it for a queue of waiters that is rarely used, and a live stream had five. This one
    is for few waiters at once.
    """

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all waiters, and let later ones pass until `clear()`."""
        self._is_set = True
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> Literal[True]:
        """Wait until the event is set; it may be cleared at once."""
        if not self._is_set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = (*self._waiters, waiter)
            try:
                await waiter
            finally:
                self._waiters = tuple(other for other in self._waiters if other is not waiter)
        return True


async def wait_or_poll(event: asyncio.Event | LightEvent, seconds: float) -> bool:
    """Wait for an event, at most one poll interval.

    The event is not cleared: clear it before reading the state that it announces, or a change in between is missed.

    Returns:
        Whether the event is set; False means that `seconds` have passed.
    """
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()


async def wait_for_result(future: asyncio.Future[T], seconds: float) -> T:
    """Return the result of a future that other code completes.

    The future is not cancelled, neither by the time limit nor with this wait.

    Raises:
        TimeoutError: it has none after `seconds`.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def end_wait(_future: object = None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = loop.call_later(seconds, end_wait)
        future.add_done_callback(end_wait)
        try:
            await waiter
        finally:
            timer.cancel()
            future.remove_done_callback(end_wait)
        if not future.done():
            raise TimeoutError
    return future.result()


class Backoff:
    """Pauses between attempts, which double and have jitter.

    A pause is drawn from the upper half of its range, so clients that failed together do not come back together.
    """

    def __init__(self, min_seconds: float, max_seconds: float) -> None:
        self._min_seconds = min_seconds
        self._max_seconds = max_seconds
        self._seconds = min_seconds

    def next_delay(self) -> float:
        """Seconds to pause before the next attempt."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, self._max_seconds)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects nothing

    def reset(self) -> None:
        """Start again from the shortest pause, after an attempt that succeeded."""
        self._seconds = self._min_seconds


class Deadline:
    """A point in time that several waits share.

    It is on the event loop's monotonic clock. `async with deadline.limit():` raises `TimeoutError` when the deadline
    passes inside the block. Blocks may follow or enclose each other, also in several tasks.
    """

    __slots__ = ("_when",)

    def __init__(self, when: float | None) -> None:
        self._when = when

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """A deadline so many seconds from now; None is no deadline."""
        return cls(None if seconds is None else asyncio.get_running_loop().time() + seconds)

    def remaining(self) -> float:
        """Seconds until the deadline: 0 once it has passed, infinite without one."""
        if self._when is None:
            return math.inf
        return max(0.0, self._when - asyncio.get_running_loop().time())

    @property
    def is_over(self) -> bool:
        return self.remaining() == 0.0

    def limit(self) -> asyncio.Timeout:
        """A context manager that ends its block at the deadline with `TimeoutError`."""
        return asyncio.timeout_at(self._when)


class WorkInterrupted(Exception):
    """`run_until` has cancelled its work."""


class Interruption:
    """A block that other code can end.

    It is an async context manager, and has no task of its own, unlike `run_until`. `interrupt()` ends the block with
    `WorkInterrupted`.
    """

    __slots__ = ("_cancelling", "_is_interrupted", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        """The task in the block."""
        self._cancelling = 0
        self._is_interrupted = False

    def interrupt(self) -> None:
        """End the block at its next wait.

        No effect before its begin and after its end.
        """
        if self._task is not None:
            # Not at once: this task itself may run now, and leave the block without a wait.
            self._task.get_loop().call_soon(self._cancel_wait)

    def _cancel_wait(self) -> None:
        if self._task is not None and not self._is_interrupted:
            self._is_interrupted = True
            self._task.cancel()

    def on_done(self, _task: object) -> None:
        """End the block, as the done callback of a task."""
        self.interrupt()

    async def __aenter__(self) -> Self:
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._is_interrupted:
            assert task is not None
            is_only_cause = task.uncancel() <= self._cancelling
            if is_only_cause and kind is asyncio.CancelledError:
                raise WorkInterrupted from None


async def run_until(work: Awaitable[T], end: Awaitable[object]) -> T:
    """Await `work`, and cancel it when `end` returns first.

    `work` runs in the caller's task. Both have ended on return. The error of the one that ended first is raised.

    Raises:
        WorkInterrupted: `end` returned first, or something else cancelled `work`.
    """
    interruption = Interruption()
    end_task = asyncio.ensure_future(end)
    end_task.add_done_callback(interruption.on_done)
    try:
        async with interruption:
            return await work
    except WorkInterrupted:
        if end_task.done():
            end_task.result()
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise WorkInterrupted from None
    finally:
        end_task.cancel()
        await asyncio.wait((end_task,))


def run_without_wait(work: Coroutine[object, object, object]) -> bool:
    """Run a coroutine, but close it at its first wait.

    Return whether it ended before.
    """
    try:
        work.send(None)
    except StopIteration:
        return True
    work.close()
    return False
