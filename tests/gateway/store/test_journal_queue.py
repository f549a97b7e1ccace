"""The choice of what the journal writes with the next commit."""

from collections.abc import Sequence
from uuid import uuid4

from gateway.agent.turn_log import TurnLog
from gateway.domain import events as e
from gateway.domain.events import JournalEntry, encode_event
from gateway.store.journal.queue import JournalQueue, PendingWrite
from gateway.store.journal.statements import BEGIN_TURN, FINISH_TURN

KIB = 1024


def make_entries(count: int, size: int, first_seq: int = 1) -> list[JournalEntry]:
    """Make entries whose JSON has `size` bytes each."""
    overhead = len(encode_event(e.TextDelta(step=1, text="")))
    event = e.TextDelta(step=1, text="x" * (size - overhead))
    return [JournalEntry(first_seq + number, event, encode_event(event)) for number in range(count)]


def put(
    queue: JournalQueue, log: TurnLog, entries: list[JournalEntry], row: str = "", row_size: int = 0
) -> PendingWrite:
    write = PendingWrite(log, entries, (row, ()) if row else None, row_size=row_size)
    queue.put(write)
    return write


def list_taken(batch: Sequence[PendingWrite]) -> list[tuple[int, bool]]:
    return [(write.taken_count, write.takes_row) for write in batch]


async def test_batch_is_bounded_and_the_rest_follows_in_order() -> None:
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    first, second = put(queue, log, make_entries(3, KIB)), put(queue, log, make_entries(8, KIB, 4))
    batch = queue.take_batch(8 * KIB)
    assert batch == [first, second]
    assert list_taken(batch) == [(3, True), (2, False)]
    for write in batch:
        write.advance()
    queue.finish(batch)
    assert first.done.done()
    assert not second.done.done()
    while batch := queue.take_batch(8 * KIB):
        assert batch == [second]
        second.advance()
        queue.finish(batch)
    assert second.done.done()
    assert not queue


async def test_failed_batch_is_taken_again() -> None:
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    write = put(queue, log, make_entries(4, KIB))
    assert list_taken(queue.take_batch(8 * KIB)) == [(4, True)]
    queue.finish([write])
    assert list_taken(queue.take_batch(KIB)) == [(1, False)]


async def test_long_write_of_one_turn_leaves_room_for_the_others() -> None:
    queue = JournalQueue(64 * KIB)
    long = put(queue, TurnLog(uuid4()), make_entries(40, KIB))
    others = [put(queue, TurnLog(uuid4()), make_entries(1, KIB)) for _ in range(6)]
    batch = queue.take_batch(8 * KIB)
    assert batch == [long, *others]
    assert long.taken_count == 2


async def test_turns_in_a_commit_are_not_taken_by_another_task() -> None:
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    first = put(queue, log, make_entries(1, KIB))
    assert queue.take_batch(8 * KIB) == [first]
    put(queue, log, make_entries(1, 20 * KIB, 2))
    other = put(queue, TurnLog(uuid4()), make_entries(1, KIB))
    assert queue.take_batch(8 * KIB) == [other]
    assert queue.take_slow(8 * KIB, 16 * KIB) == []


async def test_entry_that_is_larger_than_a_batch_is_taken_apart_from_the_others() -> None:
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    large = put(queue, log, [*make_entries(1, 20 * KIB), *make_entries(1, KIB, 2)])
    put(queue, log, make_entries(1, KIB, 3))
    other = put(queue, TurnLog(uuid4()), make_entries(1, KIB))
    assert queue.take_batch(8 * KIB) == [other]
    assert queue.take_slow(8 * KIB, 16 * KIB) == [large]
    assert large.taken_count == 1
    for write in (large, other):
        write.advance()
    queue.finish([large, other])
    assert list_taken(queue.take_batch(8 * KIB)) == [(1, True), (1, True)]


async def test_end_of_a_turn_is_written_together_with_its_row() -> None:
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    write = put(queue, log, make_entries(2, KIB), FINISH_TURN, row_size=20 * KIB)
    assert list_taken(queue.take_batch(8 * KIB)) == [(1, False)]
    write.advance()
    queue.finish([write])
    assert queue.take_batch(8 * KIB) == []
    assert list_taken(queue.take_slow(8 * KIB, 16 * KIB)) == [(1, True)]


async def test_start_of_a_turn_is_one_part_with_the_steps_that_it_takes_over() -> None:
    """A takeover of half of the steps would run calls again."""
    queue, log = JournalQueue(64 * KIB), TurnLog(uuid4())
    put(queue, log, make_entries(6, KIB), BEGIN_TURN, row_size=2 * KIB)
    assert queue.take_batch(4 * KIB) == []
    assert list_taken(queue.take_slow(4 * KIB, 4 * KIB)) == [(6, True)]
