"""Background tasks that are logged, restarted, counted and stopped."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import Context

import structlog

from gateway_runtime.background.waits import Backoff, Deadline, wait_or_poll

log = structlog.stdlib.get_logger(__name__)

_MIN_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 30.0
_GOOD_RUN_SECONDS = 60.0


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

    The composition root of a server makes one and adds to it.
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
