"""Background tasks, bounded waits and bounded collections.

Other modules of the gateway make no tasks of their own. CONTRIBUTING.md lists the exceptions with their reasons.

| need | use |
|---|---|
| a loop that runs as long as its owner | `SupervisedTask` |
| tasks of one owner that end by themselves | `TaskSet` |
| work that another event ends early | `run_until` |
| an event whose message may be lost | `wait_or_poll` |
| one time limit for several waits | `Deadline` |
| growing pauses between attempts | `Backoff` |
| synchronous producers in front of a slower consumer | `BoundedQueue` |
| a mapping that forgets its least recently used key | `LruDict` |

A task that must fail or be cancelled together with its caller belongs in an `asyncio.TaskGroup` instead, and a cache
whose entries expire is a `cachetools.TTLCache`.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import Context
from typing import Generic, TypeVar

import anyio
from cachetools import LRUCache

from gateway.common.logging import get_logger

log = get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_MIN_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 30.0
_GOOD_RUN_SECONDS = 60.0


async def wait_or_poll(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most one poll interval.

    The event is not cleared: clear it before reading the state that it announces, or a change in between is missed.

    Returns:
        Whether the event is set; False means that `seconds` have passed.
    """
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()


class WorkInterrupted(Exception):
    """`run_until` has cancelled its work."""


async def run_until(work: Awaitable[T], end: Awaitable[object]) -> T:
    """Await `work`, and cancel it when `end` returns first.

    Both have ended on return. The error of the one that ended first is raised.

    Raises:
        WorkInterrupted: `end` returned first, or something else cancelled `work`.
    """
    work_task, end_task = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait((work_task, end_task), return_when=asyncio.FIRST_COMPLETED)
        if work_task.done() and not work_task.cancelled():
            return work_task.result()
        if end_task.done():
            end_task.result()
        raise WorkInterrupted
    finally:
        work_task.cancel()
        end_task.cancel()
        await asyncio.gather(work_task, end_task, return_exceptions=True)


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


class SupervisedTask:
    """A background task that does not fail unnoticed.

    `run` is a coroutine function without parameters. When it raises, the error is logged with its type and traceback,
    and `run` starts again after a backoff with jitter. A `run` that returns is started again in the same way, because a
    loop is not expected to end. A run of at least `good_run_seconds` resets the backoff.

    With `restart=False` it runs once: returning is its regular end, and `start()` may run it again. After an error it
    stays down until then.

    It runs in an empty context, because it outlives the request that happens to start it: its log lines would name that
    request, and its calls of MCP servers would act for that user. A `run` that needs a context variable sets it.

    `vital`: the process cannot do its work while this task is down, so `/ready` answers 503 (see `TaskRegistry`).
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        vital: bool = False,
        restart: bool = True,
        min_backoff_seconds: float = _MIN_BACKOFF_SECONDS,
        max_backoff_seconds: float = _MAX_BACKOFF_SECONDS,
        good_run_seconds: float = _GOOD_RUN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.vital = vital
        self.restarts = 0
        """Number of restarts of `run` since this object was made."""
        self.last_error: str | None = None
        """The type of the error that ended `run` last.

        None if there was none.
        """
        self._run = run
        self._restart = restart
        self._backoff = Backoff(min_backoff_seconds, max_backoff_seconds)
        self._good_run_seconds = good_run_seconds
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._skip_backoff = asyncio.Event()
        self._down = False
        self._stopping = False

    def start(self) -> None:
        """Run in the background, in an empty context.

        Does nothing while it already runs.
        """
        if self._task is None or self._task.done():
            self._down = self._stopping = False
            self._task = asyncio.create_task(self._supervise(), name=self.name, context=Context())

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """End the task without a restart.

        It is cancelled, after `grace_seconds` in which it may end by itself. Errors of the task are not raised here.
        May be called before `start()` and more than once.
        """
        self._stopping = True
        self._skip_backoff.set()
        task = self._task
        if task is None:
            return
        if grace_seconds > 0:
            await asyncio.wait({task}, timeout=grace_seconds)
        task.cancel()
        await asyncio.wait({task})
        self._down = False

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until it ended for good, at most `timeout` seconds.

        Without a restart, that is the end of the run.
        """
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)

    def restart_now(self) -> None:
        """Skip the rest of a backoff, if it is in one."""
        self._skip_backoff.set()

    @property
    def is_running(self) -> bool:
        """Whether it was started and has neither ended nor been stopped.

        True during a backoff.
        """
        return self._task is not None and not self._task.done()

    @property
    def is_down(self) -> bool:
        """Whether the task ended without `stop()` and does not run now.

        It is in a backoff, or down for good after an error.
        """
        return self._down

    async def _supervise(self) -> None:
        while True:
            started_at = self._clock()
            succeeded = await self._run_once()
            if self._stopping or (succeeded and not self._restart):
                return
            self._down = True
            if not self._restart:
                return
            if self._clock() - started_at >= self._good_run_seconds:
                self._backoff.reset()
            self._skip_backoff.clear()
            await wait_or_poll(self._skip_backoff, self._backoff.next_delay())
            if self._stopping:
                return
            self.restarts += 1
            self._down = False

    async def _run_once(self) -> bool:
        """Run once; return whether `run` returned. An error is logged."""
        try:
            await self._run()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopping or task is None or task.cancelling():
                raise
            self._log_failure("CancelledError")  # of something that it awaited, not of this task
            return False
        except Exception as error:  # noqa: BLE001 - any error is logged, and `run` is started again
            self._log_failure(type(error).__name__)
            return False
        if self._restart and not self._stopping:
            log.warning("background_task_returned", task=self.name, restarts=self.restarts)
        return True

    def _log_failure(self, error: str) -> None:
        self.last_error = error
        log.exception("background_task_failed", task=self.name, error=error, restarts=self.restarts, vital=self.vital)


class TaskRegistry:
    """The supervised tasks of a process, for `/ready` and for statistics.

    `composition/` makes one and adds to it.
    """

    def __init__(self) -> None:
        self._tasks: list[SupervisedTask] = []

    def add(self, *tasks: SupervisedTask) -> None:
        """Add tasks."""
        self._tasks.extend(tasks)

    def __iter__(self) -> Iterator[SupervisedTask]:
        return iter(self._tasks)

    @property
    def down_vital_tasks(self) -> tuple[str, ...]:
        """Names of the vital tasks that are down now.

        They are in the order in which they were added.
        """
        return tuple(task.name for task in self._tasks if task.vital and task.is_down)


class TaskSet:
    """Background tasks that end by themselves, or with their owner's `stop()`.

    They run in a copy of the context that spawns them. The set references them until they end, so they are not
    garbage-collected, and logs their errors. With `log_errors=False` it does not, because the owner awaits every task
    that `spawn()` returns.
    """

    def __init__(self, name: str, *, log_errors: bool = True) -> None:
        self._name = name
        self._log_errors = log_errors
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[object, object, None], name: str | None = None) -> asyncio.Task[None]:
        """Run a coroutine in a background task.

        The task has the set's name or its own. Its error is logged as `background_task_failed`.
        """
        task = asyncio.create_task(coroutine, name=name or self._name)
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until all tasks have ended, at most `timeout` seconds.

        Includes tasks that are spawned during the wait. Errors of the tasks are not raised here.
        """
        deadline = Deadline.after(timeout)
        while self._tasks and not deadline.is_over:
            remaining = deadline.remaining()
            await asyncio.wait(self._tasks, timeout=None if remaining == math.inf else remaining)
            await asyncio.sleep(0)  # their done callbacks remove them from the set

    async def stop(self, timeout: float | None = 0.0) -> None:
        """Wait for the tasks, then cancel those that still run.

        The wait takes at most `timeout` seconds (None: without limit). See `wait()`.
        """
        await self.wait(timeout)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = (
            None if task.cancelled() else task.exception()
        )  # read, or asyncio reports it when the owner was cancelled
        if self._log_errors and error is not None:
            log.error("background_task_failed", task=task.get_name(), error=type(error).__name__, exc_info=error)


class BoundedQueue(Generic[T]):
    """A queue between producers that cannot wait and a batch consumer.

    The consumer takes many items at once. `put()` always succeeds, since a synchronous producer has nowhere to wait.
    Producers that can wait do so beforehand in `wait_for_capacity()`. An item counts until `remove()`, so a batch that
    is being worked on still fills the queue.

    `max_size` is in the unit of `size_of`, by default items. The queue becomes full above `max_size`, and stays full
    until its size is at most half of that. Items are compared by identity.
    """

    def __init__(self, max_size: int, *, size_of: Callable[[T], int] | None = None) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._items: dict[int, tuple[T, int]] = {}
        self._size = 0
        self._has_items = asyncio.Event()
        self._has_capacity = asyncio.Event()
        self._has_capacity.set()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items, oldest first. The queue must not change meanwhile."""
        return (item for item, _ in self._items.values())

    @property
    def is_full(self) -> bool:
        return not self._has_capacity.is_set()

    def put(self, item: T) -> None:
        """Append an item, also to a full queue.

        An item that is in the queue keeps its place, and its size is measured again.
        """
        _, old_size = self._items.get(id(item), (None, 0))
        size = self._measure(item)
        self._items[id(item)] = item, size
        self._size += size - old_size
        if self._size > self._max_size:
            self._has_capacity.clear()
        self._has_items.set()

    async def wait_for_items(self) -> list[T]:
        """Wait for an item.

        Return all items, oldest first. They stay in the queue.
        """
        await self._has_items.wait()
        return list(self)

    async def wait_for_capacity(self) -> None:
        """Return when the queue is not full."""
        await self._has_capacity.wait()

    def remove(self, items: list[T]) -> None:
        """Remove items. Those that are not in the queue are ignored."""
        for item in items:
            self._size -= self._items.pop(id(item), (None, 0))[1]
        if self._size <= self._max_size // 2:
            self._has_capacity.set()
        if not self._items:
            self._has_items.clear()

    def _measure(self, item: T) -> int:
        return 1 if self._size_of is None else self._size_of(item)


class LruDict(LRUCache[K, V]):
    """A mapping of at most `max_items` keys.

    A new key beyond that replaces the least recently used one. Reading and writing a key both count as use, also by
    iterating over items; `in` and iteration over keys, whose order is unspecified, do not. `on_evict(key, value)` is
    called for a replaced key, not for one that is deleted or popped.
    """

    def __init__(self, max_items: int, *, on_evict: Callable[[K, V], None] | None = None) -> None:
        super().__init__(maxsize=max_items)
        self._on_evict = on_evict

    def popitem(self) -> tuple[K, V]:
        """Remove and return the least recently used key and its value.

        Insertion into a full mapping calls this.
        """
        key, value = super().popitem()
        if self._on_evict is not None:
            self._on_evict(key, value)
        return key, value
