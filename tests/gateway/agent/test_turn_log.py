"""Tests of which events readers of a turn log see, and when."""

import asyncio
from uuid import uuid4

import pytest

from gateway.agent.turn_log import TurnLog
from gateway.domain.errors import ErrorInfo
from gateway.domain.events import JournalEntry, StepCompleted, TextDelta, TurnCancelled
from gateway.domain.messages import Usage

TEXT_DELTA = TextDelta(step=1, text="a")
STEP_COMPLETED = StepCompleted(step=1, finish_reason="stop", usage=Usage())
TURN_END = TurnCancelled(error=ErrorInfo("cancelled", "x"), saved="text")


async def read_numbers(log: TurnLog, after: int = 0) -> list[int]:
    return [entry.seq async for batch in log.follow(after) for entry in batch]


async def test_events_are_numbered_from_one_without_a_gap() -> None:
    log = TurnLog(uuid4())
    for event in (TEXT_DELTA, STEP_COMPLETED, TEXT_DELTA, TURN_END):
        log.append(event)
    assert [entry.seq for entry in log.entries] == [1, 2, 3, 4]


async def test_delta_is_visible_immediately_and_other_events_after_commit() -> None:
    log = TurnLog(uuid4())
    log.append(TEXT_DELTA)
    assert log.visible_count == 1
    log.append(STEP_COMPLETED)
    log.append(TEXT_DELTA)
    assert log.visible_count == 1
    log.mark_committed(2)
    assert log.visible_count == 3


async def test_synchronous_log_hides_deltas_until_committed() -> None:
    log = TurnLog(uuid4(), synchronous=True)
    log.append(TEXT_DELTA)
    log.append(TEXT_DELTA)
    assert log.visible_count == 0
    log.mark_committed(1)
    assert log.visible_count == 1


async def test_thousand_readers_each_get_all_events_once_in_order() -> None:
    log = TurnLog(uuid4())
    readers = [asyncio.create_task(read_numbers(log)) for _ in range(1000)]
    for _ in range(50):
        log.append(TEXT_DELTA)
        await asyncio.sleep(0)
    log.append(TURN_END)
    log.mark_committed(51)
    async with asyncio.timeout(30):
        assert set(map(tuple, await asyncio.gather(*readers))) == {tuple(range(1, 52))}


async def test_reader_starts_after_a_sequence_number() -> None:
    log = TurnLog(uuid4())
    for _ in range(5):
        log.append(TEXT_DELTA)
    log.append(TURN_END)
    log.mark_committed(6)
    assert await read_numbers(log, after=4) == [5, 6]
    assert await read_numbers(log, after=6) == []


async def test_close_ends_readers_after_the_visible_events() -> None:
    log = TurnLog(uuid4())
    log.append(TEXT_DELTA)
    reader = asyncio.create_task(read_numbers(log))
    await asyncio.sleep(0)
    log.append(TURN_END)
    log.close("server_stopping")
    async with asyncio.timeout(30):
        assert await reader == [1]
    assert log.close_reason == "server_stopping"


async def test_take_unwritten_returns_each_entry_once() -> None:
    log = TurnLog(uuid4())
    log.append(TEXT_DELTA)
    first = log.take_unwritten()
    log.append(TEXT_DELTA)
    log.append(TEXT_DELTA)
    assert [entry.seq for entry in first + log.take_unwritten()] == [1, 2, 3]
    assert log.take_unwritten() == []
    assert isinstance(first[0], JournalEntry)


@pytest.mark.parametrize(("count", "size"), [(400, 10_000), (12, 200_000), (2, 3_000_000)])
@pytest.mark.parametrize("is_loaded", [False, True])
async def test_batch_of_a_slow_reader_is_bounded_in_bytes(count: int, size: int, is_loaded: bool) -> None:
    log = TurnLog(uuid4())
    for _ in range(count):
        log.append(TextDelta(step=1, text="a" * size))
    if is_loaded:  # as in a turn that was taken over
        entries, log = log.entries, TurnLog(uuid4())
        log.load_entries(entries)
    log.close("done")
    batches = [batch async for batch in log.follow()]
    assert sum(map(len, batches)) == count
    assert max(sum(len(entry.data) for entry in batch) for batch in batches) <= max(size + 100, 256 * 1024)


def test_only_deltas_may_wait_for_the_next_flush() -> None:
    assert [TurnLog(uuid4()).append(event) for event in (TEXT_DELTA, STEP_COMPLETED, TURN_END)] == [False, True, True]
    assert TurnLog(uuid4(), synchronous=True).append(TEXT_DELTA)


async def test_reader_that_claims_later_entries_gets_only_those_after_them() -> None:
    log = TurnLog(uuid4())
    log.append(TEXT_DELTA)
    reading = asyncio.create_task(read_numbers(log, after=2))
    await asyncio.sleep(0)
    for event in (TEXT_DELTA, TEXT_DELTA, TURN_END):
        log.append(event)
        await asyncio.sleep(0)
    log.mark_committed(4)
    assert await reading == [3, 4]
