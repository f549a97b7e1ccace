"""Readers of a turn that this worker does not run."""

import asyncio
from uuid import UUID, uuid4

from gateway.agent.following.journal_window import MAX_WINDOW_BYTES, JournalWindow
from gateway.domain.errors import JournalExpired, StorageUnavailable
from gateway.domain.events import JournalEntry, TextDelta, TurnCompleted, encode_event
from gateway.domain.messages import Usage

COUNT = 400
PART = 16


def make_entries() -> list[JournalEntry]:
    """Make 4 MB of events, with the turn's end."""
    end = TurnCompleted(finish_reason="stop", usage=Usage(), steps=1, duration_ms=1.0)
    events = [*(TextDelta(step=1, text=f"{n:06}" + "a" * 10_000) for n in range(COUNT - 1)), end]
    return [JournalEntry(n, event, encode_event(event)) for n, event in enumerate(events, 1)]


class Store:
    """Records how far its journal was read."""

    def __init__(self) -> None:
        self.entries = make_entries()
        self.reads: list[int] = []

    async def load_events(self, _turn_id: UUID, after: int) -> list[JournalEntry]:
        self.reads.append(after)
        await asyncio.sleep(0)
        return self.entries[after : after + PART]


class Filler:
    """Fills a window when a reader waits."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reader_waits = asyncio.Event()
        self.window = JournalWindow(uuid4(), store.load_events, self.reader_waits.set)

    async def fill(self) -> None:
        while not self.window.has_ended and not self.window.close_reason:
            await self.reader_waits.wait()
            self.reader_waits.clear()
            await fill_once(self.window, self.store)


async def fill_once(window: JournalWindow, store: Store) -> None:
    if window.has_waiting_reader:
        window.load_entries(await store.load_events(window.turn_id, window.last_seq))


async def test_readers_of_any_speed_get_everything_from_a_bounded_window() -> None:
    store = Store()
    window = (filler := Filler(store)).window
    filling = asyncio.create_task(filler.fill())
    slow = window.follow()
    slow_numbers = [entry.seq for entry in await anext(slow)]
    fast_numbers: list[int] = []
    async for batch in window.follow():
        fast_numbers += [entry.seq for entry in batch]
        assert sum(len(entry.data) for entry in window.entries) <= MAX_WINDOW_BYTES + PART * 10_100
        assert sum(len(entry.data) for entry in batch) <= 300_000
    reads = len(store.reads)
    async for batch in slow:
        slow_numbers += [entry.seq for entry in batch]
    assert fast_numbers == slow_numbers == list(range(1, COUNT + 1))
    assert len(store.reads) > reads  # the slow reader read again what had left the window
    late = [entry.seq async for batch in window.follow(COUNT - 2) for entry in batch]
    assert late == [COUNT - 1, COUNT]
    await filling


async def test_journal_is_read_no_further_than_its_readers_need() -> None:
    store = Store()
    window = (filler := Filler(store)).window
    filling = asyncio.create_task(filler.fill())
    reader = window.follow()
    await anext(reader)
    for _ in range(20):
        await asyncio.sleep(0)
    assert store.reads == [0]
    await reader.aclose()
    filling.cancel()


async def test_reader_ends_when_older_events_are_gone_or_the_store_is_away() -> None:
    for failure, reason in ((None, JournalExpired.code), (StorageUnavailable(), StorageUnavailable.code)):
        store = Store()
        window = JournalWindow(uuid4(), store.load_events, lambda: None)
        for start in range(0, COUNT, PART):
            window.load_entries(store.entries[start : start + PART])

        async def load_nothing(_turn_id: UUID, _after: int, failure: Exception | None = failure) -> list[JournalEntry]:
            if failure is not None:
                raise failure
            return []

        window._load_events = load_nothing
        assert [batch async for batch in window.follow()] == []
        assert window.close_reason == reason
