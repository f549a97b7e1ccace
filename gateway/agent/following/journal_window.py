"""Newest events of a stored turn that runs elsewhere or ended."""

import asyncio
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
    `has_waiting_reader` is set while a reader has read everything.
    """

    def __init__(self, turn_id: UUID, load_events: LoadEvents) -> None:
        super().__init__(turn_id)
        self.has_waiting_reader = asyncio.Event()
        self._load_events = load_events
        self._dropped_seq = 0

    def load_entries(self, entries: Iterable[JournalEntry]) -> None:
        """Add entries of the journal, and drop the oldest beyond the maximum."""
        last_seq = self.last_seq
        super().load_entries(entries)
        if self.last_seq > last_seq:
            self.has_waiting_reader.clear()
        dropped_count = 0
        for entry in self.entries[:-1]:
            if self._loaded_bytes <= MAX_WINDOW_BYTES:
                break
            self._loaded_bytes -= len(entry.data)
            self._dropped_seq = entry.seq
            dropped_count += 1
        del self.entries[:dropped_count]

    async def follow(self, after: int = 0) -> AsyncGenerator[list[JournalEntry]]:
        """See `TurnLog.follow`."""
        while True:
            batch = self._list_batch(after) if after >= self._dropped_seq else await self._load_batch(after)
            if batch:
                after = batch[-1].seq
                yield batch
            elif self.has_ended or self.close_reason:
                return
            else:
                self.has_waiting_reader.set()
                await self._wait_for_change()

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
