"""The numbered events of a turn in memory.

Any number of readers can follow them.
"""

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable
from operator import itemgetter
from uuid import UUID

from gateway.domain.errors import WRITE_REFUSALS, GatewayError, StorageUnavailable
from gateway.domain.events import TAKEOVER_JUMP, Delta, Event, JournalEntry, TurnEnd, encode_event
from gateway.ports.journal import EventSource

_DELTAS = Delta.__args__
_get_seq = itemgetter(0)
_MAX_BATCH = 1_000
_MAX_BATCH_BYTES = 256 * 1024
_ENDS = TurnEnd.__args__


class TurnLog(EventSource):
    """The events of a turn.

    A reader has an index into the list instead of a queue. See docs/adr/0001. A delta is visible at once; any other
    event, and all after it, when `mark_committed` reports that it is durable. With `synchronous`, deltas wait as well.
    `on_commit` is called after each commit, `on_failure` when the log fails.
    """

    def __init__(self, turn_id: UUID, *, epoch: int = 0, attempts: int = 0, synchronous: bool = False) -> None:
        self.turn_id = turn_id
        self.epoch = epoch
        self.attempts = attempts
        self.entries: list[JournalEntry] = []
        self.close_reason: str | None = None
        self.failure: GatewayError | None = None
        self.on_commit: Callable[[], None] | None = None
        self.on_failure: Callable[[GatewayError], None] | None = None
        self.size = 0
        """Bytes of the events that this worker has added."""
        self._loaded_bytes = 0
        self._next_seq = 1
        self._synchronous = synchronous
        self._undurable: list[tuple[int, int]] = []
        self._taken_count = 0
        self._committed_seq = 0
        self._readers: list[asyncio.Future[None]] = []

    def append(self, event: Event) -> bool:
        """Number an event and add it.

        Return whether it must be durable before it is visible.
        """
        data = encode_event(event)
        entry = JournalEntry(self._next_seq, event, data)
        self._next_seq += 1
        self.size += len(data)
        must_wait = self._synchronous or not isinstance(event, _DELTAS)
        if must_wait:
            self._undurable.append((entry.seq, len(self.entries)))
        self.entries.append(entry)
        if self._readers and not self._undurable:
            self._wake_readers()
        return must_wait

    def load_entries(self, entries: Iterable[JournalEntry]) -> None:
        """Load entries that another worker has journaled."""
        self.entries.extend(entries)
        self._loaded_bytes = sum(len(entry.data) for entry in self.entries)
        self._taken_count = len(self.entries)
        self._committed_seq = self.last_seq
        self._next_seq = self.last_seq + 1
        self._wake_readers()

    def reserve_sequence_gap(self) -> None:
        """Skip numbers that the previous worker may have shown without storing them."""
        self._next_seq = self.last_seq + TAKEOVER_JUMP

    def take_unwritten(self) -> list[JournalEntry]:
        """Return the entries that the journal has not received yet.

        They are in the order to write them.
        """
        entries = self.entries[self._taken_count :]
        self._taken_count = len(self.entries)
        return entries

    def mark_committed(self, seq: int) -> None:
        """Record that all entries up to `seq` are durable."""
        self._committed_seq = seq
        del self._undurable[: bisect_right(self._undurable, seq, key=_get_seq)]
        self._wake_readers()
        if self.on_commit is not None:
            self.on_commit()

    def fail(self, error: GatewayError) -> None:
        """See `EventSource.fail`.

        Readers end, unless the turn can go on without its refused content after `drop_undurable()`.
        """
        if self.failure is not None:
            return
        self.failure = error
        self._undurable.append((sys.maxsize, len(self.entries)))  # no later entry becomes visible
        if not (isinstance(error, WRITE_REFUSALS) and self.has_begun):
            self.close(StorageUnavailable.code)
        if self.on_failure is not None:
            self.on_failure(error)

    def drop_undurable(self) -> list[JournalEntry]:
        """Forget the failure, and drop the entries that are not durable.

        Returns the others. Deltas that readers have seen stay for them. Their numbers and those of the dropped entries
        are not used again.
        """
        del self.entries[self.visible_count :]
        self._undurable.clear()
        self._taken_count = len(self.entries)
        self.failure = None
        return [entry for entry in self.entries if entry.seq <= self._committed_seq]

    def close(self, reason: str) -> None:
        """End the readers before the turn's end.

        This process will not produce the end.
        """
        self.close_reason = self.close_reason or reason
        self._wake_readers()

    @property
    def has_begun(self) -> bool:
        """True if an entry is durable, so the turn has a row."""
        return self._committed_seq > 0

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq if self.entries else 0

    @property
    def visible_count(self) -> int:
        """Number of entries that readers may see."""
        return self._undurable[0][1] if self._undurable else len(self.entries)

    @property
    def has_ended(self) -> bool:
        """True if the turn's last event is visible to readers."""
        return bool(self.entries) and not self._undurable and isinstance(self.entries[-1].event, _ENDS)

    def follow(self, after: int = 0) -> AsyncIterator[list[JournalEntry]]:
        """Iterate over batches of the entries after number `after`.

        Ends when the turn ends or the log closes. A batch has a maximum, because the connection of a slow client
        buffers a whole batch.
        """
        return _LogReader(self, after)

    def take_batch(self, start: int) -> list[JournalEntry]:
        """Return a batch of the visible entries from index `start`."""
        end = self.visible_count
        if end - start > 1:
            end = self._limit_bytes(start, min(end, start + _MAX_BATCH))
        return self.entries[start:end]

    def _limit_bytes(self, start: int, end: int) -> int:
        """Return the end of a batch within `_MAX_BATCH_BYTES`.

        A batch has at least one entry. Bytes are counted only where the whole log has more, to keep tokens cheap.
        """
        if self.size + self._loaded_bytes <= _MAX_BATCH_BYTES:
            return end
        size = 0
        for index in range(start, end):
            size += len(self.entries[index].data)
            if size > _MAX_BATCH_BYTES and index > start:
                return index
        return end

    def wait_for_change(self) -> asyncio.Future[None]:
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        return reader

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)


class _LogReader(AsyncIterator[list[JournalEntry]]):
    """A reader's place in a log."""

    __slots__ = ("_after", "_log", "_read_count")

    def __init__(self, log: TurnLog, after: int) -> None:
        self._log, self._after = log, after
        self._read_count = index_after(log.entries, after) if after else 0

    async def __anext__(self) -> list[JournalEntry]:
        log = self._log
        while True:
            if batch := log.take_batch(self._read_count):
                self._read_count += len(batch)
                if batch[0].seq <= self._after:  # a client may claim to have seen entries that are yet to come
                    batch = batch[index_after(batch, self._after) :]
                if batch:
                    return batch
            elif log.has_ended or log.close_reason:
                raise StopAsyncIteration
            else:
                await log.wait_for_change()


def index_after(entries: list[JournalEntry], seq: int) -> int:
    """Return the index of the first entry after number `seq`."""
    return bisect_right(entries, seq, key=lambda entry: entry.seq)
