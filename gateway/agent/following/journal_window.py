"""Newest events of a stored turn that runs elsewhere or ended."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from uuid import UUID

from gateway.agent.turn_log import TurnLog, index_after
from gateway.domain.errors import JournalExpired, StorageUnavailable
from gateway.domain.events import JournalEntry

MAX_WINDOW_BYTES = 1024 * 1024

LoadEvents = Callable[[UUID, int], Awaitable[list[JournalEntry]]]
"""Loads the next part of a turn's journal after a number."""


class JournalWindow(TurnLog):
    """A log of bounded size for readers of any speed.

    Older entries are dropped; readers that still need them read them from the store, one part at a time.
    `has_waiting_reader` is true while a reader has read everything. `on_reader_waits` is called when one begins to
    wait.
    """

    def __init__(self, turn_id: UUID, load_events: LoadEvents, on_reader_waits: Callable[[], None]) -> None:
        super().__init__(turn_id)
        self.has_waiting_reader = False
        self._load_events = load_events
        self._on_reader_waits = on_reader_waits
        self._dropped_seq = 0

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq if self.entries else self._dropped_seq

    def load_entries(self, entries: Iterable[JournalEntry]) -> None:
        """Add entries of the journal, and drop the oldest beyond the maximum."""
        last_seq = self.last_seq
        super().load_entries(entries)
        if self.last_seq > last_seq:
            self.has_waiting_reader = False
        dropped_count = 0
        for entry in self.entries[:-1]:
            if self._loaded_bytes <= MAX_WINDOW_BYTES:
                break
            self._loaded_bytes -= len(entry.data)
            self._dropped_seq = entry.seq
            dropped_count += 1
        del self.entries[:dropped_count]

    def drop_entries(self) -> None:
        """Drop all entries of a turn that has not ended."""
        if self.entries and not self.has_ended:
            self._dropped_seq = self.last_seq
            self.entries.clear()
            self._loaded_bytes = 0

    async def follow(self, after: int = 0) -> AsyncGenerator[list[JournalEntry]]:
        """See `TurnLog.follow`.

        A batch is empty after the request for the next one.
        """
        while True:
            batch = self._list_batch(after) if after >= self._dropped_seq else await self._load_batch(after)
            if batch:
                after = batch[-1].seq
                yield batch
                batch.clear()  # else the last one would stay in memory during the next wait
            elif self.has_ended or self.close_reason:
                return
            else:
                self.has_waiting_reader = True
                self._on_reader_waits()
                await self.wait_for_change()

    def _list_batch(self, after: int) -> list[JournalEntry]:
        start = index_after(self.entries, after)
        return self.entries[start : self._limit_bytes(start, len(self.entries))]

    async def _load_batch(self, after: int) -> list[JournalEntry]:
        """Load entries that have left the window.

        Where they cannot be read, the log is closed.
        """
        try:
            batch = await self._load_events(self.turn_id, after)
        except (StorageUnavailable, TimeoutError):
            self.close(StorageUnavailable.code)
            return []
        if not batch:
            self.close(JournalExpired.code)
        return batch
