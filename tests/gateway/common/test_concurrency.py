"""Tests of supervised tasks, task sets, waits and bounded collections."""

import asyncio
import gc
import logging
import math
from collections.abc import Callable
from contextvars import ContextVar

import pytest
import structlog

from gateway.common.concurrency import (
    Backoff,
    BoundedQueue,
    Deadline,
    Interruption,
    LightEvent,
    LruDict,
    SupervisedTask,
    TaskRegistry,
    TaskSet,
    WorkInterrupted,
    run_until,
    run_without_wait,
    wait_for_result,
    wait_or_poll,
)
from gateway_runtime.connections.disconnects import Disconnect

HOUR = 3600.0
Logs = list[dict[str, object]]


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    captured = structlog.testing.LogCapture()
    # Everything is given: the defaults are those that another test of this process configured.
    levels = structlog.make_filtering_bound_logger(logging.NOTSET)
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(), processors=[captured], wrapper_class=levels, cache_logger_on_first_use=False
    )
    monkeypatch.setattr("gateway_runtime.background.tasks.log", logger)
    return captured.entries


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


class FakeLoop:
    """A component's loop, whose runs end with outcomes from the test."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.outcomes: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def run(self) -> None:
        self.runs += 1
        try:
            outcome = await self.outcomes.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if outcome is not None:
            raise outcome


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def supervise(loop: FakeLoop, **options: object) -> SupervisedTask:
    options = {"min_backoff_seconds": HOUR, "max_backoff_seconds": HOUR, **options}
    return SupervisedTask("worker", loop.run, **options)


# --- SupervisedTask


async def test_failure_is_logged_with_its_type_and_traceback(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, vital=True)
    task.start()
    loop.outcomes.put_nowait(ValueError("broken"))
    await wait_until(lambda: task.is_down)
    (entry,) = logs
    assert entry["event"] == "background_task_failed"
    assert (entry["task"], entry["error"], entry["vital"]) == ("worker", "ValueError", True)
    assert entry["exc_info"]
    assert task.last_error == "ValueError"
    await task.stop()


async def test_failed_run_is_restarted_and_counted(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, min_backoff_seconds=0.0)
    task.start()
    for restarts in (1, 2):
        loop.outcomes.put_nowait(ValueError())
        await wait_until(lambda restarts=restarts: task.restarts == restarts and loop.runs == restarts + 1)
        assert not task.is_down
    await task.stop()


async def test_task_is_down_during_backoff_and_restart_now_skips_it(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop)
    task.start()
    assert task.is_running
    assert not task.is_down
    loop.outcomes.put_nowait(ValueError())
    await wait_until(lambda: task.is_down)
    assert task.is_running
    assert loop.runs == 1
    task.restart_now()
    await wait_until(lambda: loop.runs == 2)
    assert not task.is_down
    await task.stop()


async def test_returned_run_is_restarted(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop)
    task.start()
    loop.outcomes.put_nowait(None)
    await wait_until(lambda: task.is_down)
    assert [entry["event"] for entry in logs] == ["background_task_returned"]
    task.restart_now()
    await wait_until(lambda: loop.runs == 2)
    await task.stop()


async def test_stop_cancels_quietly_without_a_restart(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, min_backoff_seconds=0.0)
    task.start()
    await wait_until(lambda: loop.runs == 1)
    await task.stop()
    await task.stop()
    assert (loop.cancelled, task.restarts, logs) == (1, 0, [])
    assert not task.is_running
    assert not task.is_down


async def test_stop_ends_a_backoff(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop)
    task.start()
    loop.outcomes.put_nowait(ValueError())
    await wait_until(lambda: task.is_down)
    await task.stop()
    assert not task.is_running
    assert not task.is_down


async def test_stop_before_start_does_nothing(loop: FakeLoop) -> None:
    await supervise(loop).stop()


async def test_stop_with_grace_period_lets_the_run_finish(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop)
    task.start()
    await wait_until(lambda: loop.runs == 1)
    stopping = asyncio.create_task(task.stop(grace_seconds=HOUR))
    await asyncio.sleep(0)
    loop.outcomes.put_nowait(None)
    await stopping
    assert (loop.cancelled, loop.runs, logs) == (0, 1, [])


async def test_task_can_be_started_again_after_a_stop(loop: FakeLoop) -> None:
    task = supervise(loop)
    task.start()
    await wait_until(lambda: loop.runs == 1)
    await task.stop()
    task.start()
    await wait_until(lambda: loop.runs == 2)
    await task.stop()


async def test_start_of_a_running_task_does_nothing(loop: FakeLoop) -> None:
    task = supervise(loop)
    task.start()
    task.start()
    await wait_until(lambda: loop.runs == 1)
    await task.stop()
    assert loop.cancelled == 1


@pytest.mark.parametrize("restart", [True, False])
async def test_run_does_not_inherit_the_context_of_the_caller(restart: bool) -> None:
    caller: ContextVar[str] = ContextVar("caller")
    caller.set("a request")
    seen: asyncio.Queue[str | None] = asyncio.Queue()

    async def run() -> None:
        seen.put_nowait(caller.get(None))
        await asyncio.Event().wait()

    task = SupervisedTask("worker", run, restart=restart)
    task.start()
    assert await seen.get() is None
    await task.stop()


async def test_run_once_task_ends_when_its_run_returns(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, restart=False)
    task.start()
    loop.outcomes.put_nowait(None)
    await task.wait()
    assert (task.is_running, task.is_down, logs) == (False, False, [])
    task.start()
    await wait_until(lambda: loop.runs == 2)
    await task.stop()


async def test_failed_run_once_task_stays_down_until_started(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, restart=False)
    task.start()
    loop.outcomes.put_nowait(ValueError())
    await task.wait()
    assert task.is_down
    assert [entry["event"] for entry in logs] == ["background_task_failed"]
    task.start()
    assert not task.is_down
    await task.stop()


async def test_cancelled_future_counts_as_a_failure(logs: Logs) -> None:
    async def run() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    task = SupervisedTask("worker", run, min_backoff_seconds=HOUR, max_backoff_seconds=HOUR)
    task.start()
    await wait_until(lambda: task.is_down)
    assert logs[0]["error"] == "CancelledError"
    await task.stop()


async def test_external_cancellation_ends_the_task(loop: FakeLoop, logs: Logs) -> None:
    task = supervise(loop, min_backoff_seconds=0.0)
    task.start()
    await wait_until(lambda: loop.runs == 1)
    (running,) = (candidate for candidate in asyncio.all_tasks() if candidate.get_name() == "worker")
    running.cancel()
    await task.wait()
    assert (loop.runs, logs) == (1, [])


@pytest.mark.parametrize(("run_seconds", "expected_delay"), [(59.0, 8.0), (60.0, 2.0)])
async def test_long_run_resets_the_backoff(
    monkeypatch: pytest.MonkeyPatch, loop: FakeLoop, logs: Logs, run_seconds: float, expected_delay: float
) -> None:
    now, delays = 0.0, list[float]()

    async def record_delay(_event: asyncio.Event, delay: float) -> bool:
        delays.append(delay)
        return True

    monkeypatch.setattr("gateway_runtime.background.tasks.wait_or_poll", record_delay)
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    task = SupervisedTask(
        "worker", loop.run, min_backoff_seconds=2.0, max_backoff_seconds=30.0, good_run_seconds=60.0, clock=lambda: now
    )
    task.start()
    for runs in (1, 2):
        await wait_until(lambda runs=runs: loop.runs == runs)
        loop.outcomes.put_nowait(ValueError())
    await wait_until(lambda: loop.runs == 3)
    now += run_seconds
    loop.outcomes.put_nowait(ValueError())
    await wait_until(lambda: loop.runs == 4)
    assert delays == [2.0, 4.0, expected_delay]
    await task.stop()


# --- TaskRegistry


async def test_registry_names_the_vital_tasks_that_are_down(logs: Logs) -> None:
    loops = {"journal": FakeLoop(), "bus": FakeLoop(), "models": FakeLoop()}
    tasks = {
        name: SupervisedTask(name, loop.run, vital=name != "models", min_backoff_seconds=HOUR)
        for name, loop in loops.items()
    }
    registry = TaskRegistry()
    registry.add(*tasks.values())
    assert list(registry) == list(tasks.values())
    for task in tasks.values():
        task.start()
    assert registry.down_vital_tasks == ()
    for name in ("bus", "models"):
        loops[name].outcomes.put_nowait(ValueError())
    await wait_until(lambda: tasks["bus"].is_down and tasks["models"].is_down)
    assert registry.down_vital_tasks == ("bus",)
    for task in tasks.values():
        await task.stop()
    assert registry.down_vital_tasks == ()


# --- TaskSet


async def test_failed_spawned_task_is_logged(logs: Logs) -> None:
    async def fail() -> None:
        raise ValueError

    tasks = TaskSet("audit")
    await asyncio.wait([tasks.spawn(fail())])
    await wait_until(lambda: not len(tasks))
    (entry,) = logs
    assert (entry["event"], entry["task"], entry["error"]) == ("background_task_failed", "audit", "ValueError")
    assert isinstance(entry["exc_info"], ValueError)


async def test_owner_that_awaits_its_tasks_gets_their_errors_and_no_log(logs: Logs) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    tasks = TaskSet("tool call", log_errors=False)
    with pytest.raises(ValueError, match="broken"):
        await tasks.spawn(fail())
    await tasks.wait()
    assert logs == []


async def test_error_of_a_task_whose_owner_was_cancelled_is_not_reported_by_asyncio() -> None:
    async def fail() -> None:
        raise ValueError

    reports: list[dict[str, object]] = []
    event_loop = asyncio.get_running_loop()
    gc.collect()  # what an earlier test has left is reported as its error
    handler = event_loop.get_exception_handler()
    event_loop.set_exception_handler(lambda _loop, context: reports.append(context))
    tasks = TaskSet("reports", log_errors=False)
    tasks.spawn(fail())
    await tasks.wait()
    gc.collect()  # asyncio reports an error that was not read when its task is freed
    event_loop.set_exception_handler(handler)
    assert reports == []


async def test_task_can_have_a_name_of_its_own(logs: Logs) -> None:
    async def fail() -> None:
        raise ValueError

    tasks = TaskSet("turn")
    tasks.spawn(fail(), name="turn 1")
    tasks.spawn(fail())
    await tasks.wait()
    assert [entry["task"] for entry in logs] == ["turn 1", "turn"]


async def test_wait_for_a_task_set_ends_with_its_timeout_and_cancels_nothing() -> None:
    tasks = TaskSet("turn")
    task = tasks.spawn(asyncio.sleep(HOUR))
    await tasks.wait(0.01)
    assert not task.done()
    await tasks.stop()
    assert task.cancelled()


async def test_stop_waits_for_tasks_and_their_spawned_tasks(logs: Logs) -> None:
    tasks, ended = TaskSet("notify"), list[str]()

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        if name == "first":
            tasks.spawn(work("second"))
        ended.append(name)

    tasks.spawn(work("first"))
    await tasks.stop(None)
    assert ended == ["first", "second"]
    assert not len(tasks)


async def test_stop_cancels_tasks_after_its_timeout(logs: Logs) -> None:
    tasks = TaskSet("notify")
    task = tasks.spawn(asyncio.sleep(HOUR))
    await tasks.stop(0.01)
    assert task.cancelled()
    assert logs == []


# --- waits


@pytest.mark.parametrize("event_class", [asyncio.Event, LightEvent])
async def test_wait_or_poll_returns_when_the_event_is_set(event_class: type[asyncio.Event | LightEvent]) -> None:
    event = event_class()
    waiting = asyncio.create_task(wait_or_poll(event, HOUR))
    await asyncio.sleep(0)
    event.set()
    assert await waiting
    assert event.is_set()


@pytest.mark.parametrize("event_class", [asyncio.Event, LightEvent])
async def test_wait_or_poll_returns_after_the_interval(event_class: type[asyncio.Event | LightEvent]) -> None:
    assert not await wait_or_poll(event_class(), 0.0)


async def test_a_light_event_wakes_all_waiters_even_if_it_is_cleared_at_once() -> None:
    event = LightEvent()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    event.set()
    event.clear()
    assert await asyncio.gather(*waiting) == [True] * 3
    assert not event.is_set()


async def test_a_light_event_that_is_set_needs_no_wait() -> None:
    event = LightEvent()
    event.set()
    assert run_without_wait(event.wait())
    event.clear()
    assert not run_without_wait(event.wait())


async def test_a_cancelled_waiter_of_a_light_event_leaves_the_others_waiting() -> None:
    event = LightEvent()
    first, second = asyncio.create_task(event.wait()), asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    event.set()
    assert await second


async def test_wait_or_poll_can_be_cancelled() -> None:
    waiting = asyncio.create_task(wait_or_poll(asyncio.Event(), HOUR))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_run_until_returns_the_result_and_ends_the_other_wait() -> None:
    end = FakeLoop()

    async def work() -> str:
        await wait_until(lambda: end.runs == 1)
        return "result"

    assert await run_until(work(), end.run()) == "result"
    assert end.cancelled == 1


async def test_run_until_cancels_the_work_when_the_end_comes_first(loop: FakeLoop) -> None:
    ended = asyncio.Event()
    waiting = asyncio.create_task(run_until(loop.run(), ended.wait()))
    await wait_until(lambda: loop.runs == 1)
    ended.set()
    with pytest.raises(WorkInterrupted):
        await waiting
    assert loop.cancelled == 1


async def test_interruption_ends_a_block_and_no_other_wait_of_its_task() -> None:
    async def wait_in_block(interruption: Interruption) -> str:
        try:
            async with interruption:
                await asyncio.sleep(HOUR)
        except WorkInterrupted:
            await asyncio.sleep(0)
            return "interrupted"
        return "ended"

    interruption = Interruption()
    task = asyncio.create_task(wait_in_block(interruption))
    await asyncio.sleep(0)
    interruption.interrupt()
    interruption.interrupt()
    assert await task == "interrupted"
    assert not task.cancelling()


async def test_block_that_ends_before_its_interruption_takes_effect_ends_well() -> None:
    async with Interruption() as interruption:
        interruption.interrupt()
    await asyncio.sleep(0)
    assert (task := asyncio.current_task()) is not None
    assert not task.cancelling()


async def test_disconnect_of_the_past_is_reported_at_once() -> None:
    disconnect, reports = Disconnect(), list[str]()
    disconnect.add_callback(lambda: reports.append("before"))
    disconnect.add_callback(removed := lambda: reports.append("removed"))
    disconnect.remove_callback(removed)
    disconnect.notify()
    disconnect.add_callback(lambda: reports.append("after"))
    assert reports == ["before", "after"]


async def test_cancellation_of_an_interruptible_block_stays_one() -> None:
    async def wait_in_block() -> None:
        async with Interruption():
            await asyncio.sleep(HOUR)

    task = asyncio.create_task(wait_in_block())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_of_an_interruptible_block_is_raised() -> None:
    with pytest.raises(KeyError):
        async with Interruption():
            raise KeyError


async def test_coroutine_is_closed_at_its_first_wait() -> None:
    steps: list[str] = []

    async def work(event: asyncio.Event) -> None:
        try:
            steps.append("begun")
            await event.wait()
            steps.append("ended")
        finally:
            steps.append("left")

    event = asyncio.Event()
    assert not run_without_wait(work(event))
    event.set()
    assert run_without_wait(work(event))
    assert steps == ["begun", "left", "begun", "ended", "left"]


async def test_run_until_prefers_a_result_to_an_end_of_the_same_moment() -> None:
    assert await run_until(asyncio.sleep(0, "result"), asyncio.sleep(0)) == "result"


@pytest.mark.parametrize("failing", ["work", "end"])
async def test_run_until_raises_the_error_that_came_first_and_ends_the_other(failing: str) -> None:
    loops = {"work": FakeLoop(), "end": FakeLoop()}
    loops[failing].outcomes.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await run_until(loops["work"].run(), loops["end"].run())
    started = {name: loop.runs for name, loop in loops.items()}  # the end of work that fails at once does not start
    assert {name: loop.cancelled for name, loop in loops.items()} == started | {failing: 0}


async def test_cancelled_run_until_ends_both_before_it_raises() -> None:
    work, end = FakeLoop(), FakeLoop()
    waiting = asyncio.create_task(run_until(work.run(), end.run()))
    await wait_until(lambda: work.runs == end.runs == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (work.cancelled, end.cancelled) == (1, 1)


async def test_work_that_something_else_cancels_counts_as_interrupted() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work.cancel()
    with pytest.raises(WorkInterrupted):
        await run_until(work, asyncio.sleep(HOUR))


async def test_deadline_limits_several_waits() -> None:
    deadline = Deadline.after(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with deadline.limit():
                await asyncio.sleep(HOUR)


async def test_deadline_reports_the_remaining_time() -> None:
    deadline = Deadline.after(HOUR)
    assert not deadline.is_over
    assert deadline.remaining() == pytest.approx(HOUR, rel=0.5)
    passed = Deadline.after(-1.0)
    assert passed.is_over
    assert passed.remaining() == 0.0


async def test_missing_deadline_is_infinite() -> None:
    deadline = Deadline.after(None)
    assert deadline.remaining() == math.inf
    assert not deadline.is_over
    async with deadline.limit():
        await asyncio.sleep(0)


def test_backoff_doubles_up_to_its_maximum_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_delay() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_delay() == 1.0


def test_backoff_draws_from_the_upper_half() -> None:
    assert all(0.5 <= Backoff(1.0, 5.0).next_delay() <= 1.0 for _ in range(100))


# --- BoundedQueue


async def test_items_stay_in_the_queue_until_they_are_removed() -> None:
    queue = BoundedQueue[str](10)
    queue.put("a")
    batch = await queue.wait_for_items()
    queue.put("b")
    assert (batch, list(queue), len(queue)) == (["a"], ["a", "b"], 2)
    queue.remove(batch)
    assert await queue.wait_for_items() == ["b"]


async def test_wait_for_items_waits_for_the_next_item() -> None:
    queue = BoundedQueue[str](10)
    queue.put("a")
    queue.remove(["a"])
    waiting = asyncio.create_task(queue.wait_for_items())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put("b")
    assert await waiting == ["b"]


async def test_full_queue_accepts_items_and_has_capacity_once_half_empty() -> None:
    queue = BoundedQueue[bytes](4, size_of=len)
    items = [b"12", b"34", b"5"]
    for item in items:
        queue.put(item)
    assert queue.is_full
    waiting = asyncio.create_task(queue.wait_for_capacity())
    queue.remove(items[:1])
    await asyncio.sleep(0)
    assert queue.is_full
    assert not waiting.done()
    queue.remove(items[1:2])
    await waiting
    assert not queue.is_full


async def test_remove_compares_by_identity() -> None:
    first, second = ["same"], ["same"]
    queue = BoundedQueue[list[str]](10)
    queue.put(first)
    queue.remove([second])
    assert len(queue) == 1


# --- LruDict


def test_least_recently_used_key_is_evicted() -> None:
    evicted = list[tuple[str, int]]()
    cache = LruDict[str, int](2, on_evict=lambda key, value: evicted.append((key, value)))
    cache["a"], cache["b"] = 1, 2
    assert cache["a"] == 1
    cache["c"] = 3
    assert sorted(cache) == ["a", "c"]
    assert cache.get("a") == 1
    assert "c" in cache
    cache["d"] = 4
    assert sorted(cache) == ["a", "d"]
    assert evicted == [("b", 2), ("c", 3)]


def test_deleting_a_key_is_no_eviction() -> None:
    evicted = list[str]()
    cache = LruDict[str, int](2, on_evict=lambda key, _value: evicted.append(key))
    cache["a"], cache["b"] = 1, 2
    del cache["a"]
    assert cache.pop("b") == 2
    assert (len(cache), evicted) == (0, [])


async def test_result_of_a_future_is_awaited_without_cancelling_it() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await wait_for_result(future, 0.0)
    waiting = [asyncio.create_task(wait_for_result(future, HOUR)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    future.set_result("result")
    assert [await waiting[1], await wait_for_result(future, 0.0)] == ["result", "result"]


async def test_error_of_an_awaited_future_is_raised() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_for_result(future, HOUR))
    await asyncio.sleep(0)
    future.set_exception(KeyError())
    with pytest.raises(KeyError):
        await waiting
