"""The events of one turn in memory: numbered, shown to readers once they are durable, read by any number of them."""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from uuid import UUID

from gateway.domain.events import Delta, Event, JournalEntry, TurnCancelled, TurnCompleted, TurnFailed, encode_event
from gateway.ports.store import EventSource

_DELTAS = Delta.__args__
_ENDS = (TurnCompleted, TurnFailed, TurnCancelled)
TAKEOVER_JUMP = 10_000
"""How far the numbers jump when another worker takes a turn over: none that the first may have shown is used again."""


class TurnLog(EventSource):
    """Readers hold an index, not a queue: a slow one costs nothing and slows nobody.

    A delta is shown at once, any other event (and what follows it) when `mark_committed` reports it as durable;
    with `synchronous`, deltas wait as well. `on_commit` hears of each commit.
    """

    def __init__(self, turn_id: UUID, *, synchronous: bool = False) -> None:
        self.turn_id = turn_id
        self.entries: list[JournalEntry] = []
        self.close_reason: str | None = None
        self.on_commit: Callable[[], None] | None = None
        self._next_seq = 1
        self._synchronous = synchronous
        self._undurable: deque[tuple[int, int]] = deque()
        self._taken = 0
        self._readers: list[asyncio.Future[None]] = []

    def append(self, event: Event) -> JournalEntry:
        """Number the event and keep it."""
        entry = JournalEntry(self._next_seq, event, encode_event(event))
        self._next_seq += 1
        if self._synchronous or not isinstance(event, _DELTAS):
            self._undurable.append((entry.seq, len(self.entries)))
        self.entries.append(entry)
        if not self._undurable:
            self._wake_readers()
        return entry

    def load_entries(self, entries: Iterable[JournalEntry]) -> None:
        """Take over entries that the journal has already: another worker's."""
        self.entries.extend(entries)
        self._taken = len(self.entries)
        self._next_seq = self.last_seq + 1
        self._wake_readers()

    def reserve_sequence_gap(self) -> None:
        """Leave out the numbers that the worker before may have shown without keeping them."""
        self._next_seq = self.last_seq + TAKEOVER_JUMP

    def take_unwritten(self) -> list[JournalEntry]:
        """The entries that the journal has not been given yet. It must write them, in this order."""
        fresh = self.entries[self._taken :]
        self._taken = len(self.entries)
        return fresh

    def mark_committed(self, seq: int) -> None:
        """All up to `seq` is durable."""
        while self._undurable and self._undurable[0][0] <= seq:
            self._undurable.popleft()
        self._wake_readers()
        if self.on_commit is not None:
            self.on_commit()

    def close(self, reason: str) -> None:
        """Send the readers away before the turn's end: this process will not show it to them."""
        self.close_reason = self.close_reason or reason
        self._wake_readers()

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq if self.entries else 0

    @property
    def visible_count(self) -> int:
        """How many entries readers may see."""
        return self._undurable[0][1] if self._undurable else len(self.entries)

    @property
    def all_visible(self) -> bool:
        """Whether nothing waits for a commit."""
        return not self._undurable

    @property
    def has_ended(self) -> bool:
        """Whether the turn's last event is there for readers to see."""
        return bool(self.entries) and not self._undurable and isinstance(self.entries[-1].event, _ENDS)

    async def follow(self, after: int = 0) -> AsyncGenerator[list[JournalEntry]]:
        """Yield the entries behind number `after`, all there are at a time, until the turn ends or the log closes."""
        read = _index_after(self.entries, after)
        while True:
            visible = self.visible_count
            if visible > read:
                batch = self.entries[read:visible]
                read += len(batch)
                if batch[0].seq <= after:  # a copy may be given what its reader has
                    batch = batch[_index_after(batch, after) :]
                if batch:
                    yield batch
            elif self.has_ended or self.close_reason:
                return
            else:
                await self._wait_for_change()

    def _wait_for_change(self) -> asyncio.Future[None]:
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        return reader

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)


def _index_after(entries: list[JournalEntry], seq: int) -> int:
    """The index of the first entry behind number `seq`."""
    return bisect_right(entries, seq, key=lambda entry: entry.seq)
