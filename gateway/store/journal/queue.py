"""Queue of the writes that wait for a commit."""

import asyncio
from collections.abc import Callable, Iterable
from operator import attrgetter
from uuid import UUID

from gateway.common.concurrency import BoundedQueue
from gateway.domain.errors import GatewayError
from gateway.domain.events import JournalEntry
from gateway.ports.journal import EventSource
from gateway.store.journal.statements import BEGIN_TURN, Row

_MAX_SHARE = 4
"""Divisor of a batch's size: limit for the part of one write."""


class PendingWrite:
    """Entries of one turn, and a row that begins or ends it.

    A commit may write only its first part, which `take_part` chooses. `done` completes with the last part. A write
    that does not expire is tried again for ever. `is_complete`: all of it is durable. `may_be_stored`: the result of a
    commit of it is unknown. `refused_at` is the time of the first failed attempt since its last part was stored.
    """

    __slots__ = (
        "attempted_at",
        "done",
        "entries",
        "expires",
        "is_complete",
        "may_be_stored",
        "refused_at",
        "row",
        "row_size",
        "size",
        "source",
        "submitted_at",
        "taken_count",
        "takes_row",
    )

    def __init__(
        self,
        source: EventSource,
        entries: list[JournalEntry],
        row: Row | None = None,
        *,
        row_size: int = 0,
        expires: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.source = source
        self.entries = entries
        self.row = row
        self.row_size = row_size
        self.size = row_size + sum([len(entry.data) for entry in entries])
        self.expires = expires
        self.submitted_at = loop.time()
        self.taken_count = 0
        self.takes_row = False
        self.may_be_stored = False
        self.attempted_at = 0.0
        self.is_complete = False
        self.refused_at: float | None = None
        self.done: asyncio.Future[None] = loop.create_future()

    @property
    def begins_turn(self) -> bool:
        return self.row is not None and self.row[0] is BEGIN_TURN

    @property
    def first_size(self) -> int:
        """Size of the smallest part that a commit can write.

        A write that begins a turn has one part: a worker that takes the turn over must find all steps that it has from
        another turn, or it would run their calls. A row that ends a turn is in the last part together with the last
        entry, because clients must not see the end of a turn whose row lacks it.
        """
        if self.begins_turn:
            return self.size
        row_size = self.row_size if len(self.entries) < 2 else 0
        return row_size + (len(self.entries[0].data) if self.entries else 0)

    @property
    def taken_entries(self) -> list[JournalEntry]:
        return self.entries[: self.taken_count]

    @property
    def is_taken_whole(self) -> bool:
        return self.taken_count == len(self.entries) and (self.takes_row or self.row is None)

    def take_part(self, max_bytes: int) -> int | None:
        """Take the first part of at most `max_bytes`, and return its size.

        Returns None if the smallest part is larger.
        """
        if self.size <= max_bytes:
            self.taken_count, self.takes_row = len(self.entries), True
            return self.size
        if self.first_size > max_bytes:
            return None
        self.takes_row = self.begins_turn
        size, self.taken_count = self.row_size if self.takes_row else 0, 0
        for entry in self.entries if self.takes_row else self.entries[:-1]:
            if size + len(entry.data) > max_bytes:
                break
            size += len(entry.data)
            self.taken_count += 1
        return size

    def advance(self) -> None:
        """Record that the part that was taken is durable."""
        self.refused_at = None
        taken = self.taken_entries
        for entry in taken:
            entry.release_encoded()
        if taken:
            self.source.mark_committed(taken[-1].seq)
        if self.is_taken_whole:
            self.entries, self.row, self.size = [], None, 0
            self.is_complete = True
            if not self.done.done():
                self.done.set_result(None)
            return
        del self.entries[: self.taken_count]
        if self.takes_row:
            self.row, self.row_size = None, 0
        self.size = self.row_size + sum(len(entry.data) for entry in self.entries)

    def fail(self, error: GatewayError) -> None:
        """Complete `done` with an error."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks the error as retrieved, because not every write has a waiter


class NullEventSource(EventSource):
    """A turn's log without entries to write."""

    failure = None
    attempts = 0

    def __init__(self, turn_id: UUID, epoch: int) -> None:
        self.turn_id = turn_id
        self.epoch = epoch

    def take_unwritten(self) -> list[JournalEntry]:
        return []

    def mark_committed(self, seq: int) -> None:
        pass

    def fail(self, error: GatewayError) -> None:
        pass  # `PendingWrite.done` tells whoever waits


class JournalQueue:
    """The writes of all turns, oldest first.

    Several tasks take batches from it. The writes of a turn are committed in order, so only one task at a time has
    writes of a turn. The queue is full above `max_bytes`. A suspect is a turn whose write may have delayed a batch.
    """

    def __init__(self, max_bytes: int) -> None:
        self._waiting: BoundedQueue[PendingWrite] = BoundedQueue(max_bytes, size_of=attrgetter("size"))
        self._by_source: dict[EventSource, dict[PendingWrite, None]] = {}
        self._in_flight: set[PendingWrite] = set()
        self._suspects: set[EventSource] = set()
        self._on_change: Callable[[], None] = _do_nothing
        self._on_slow: Callable[[], None] = _do_nothing

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return self._waiting.is_full

    async def wait_for_capacity(self) -> None:
        await self._waiting.wait_for_capacity()

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` when there may be something for `take_batch`."""
        self._on_change = on_change

    def subscribe_slow(self, on_slow: Callable[[], None]) -> None:
        """Call `on_slow` when there may be something for `take_slow`."""
        self._on_slow = on_slow

    def put(self, write: PendingWrite) -> None:
        self._waiting.put(write)
        self._by_source.setdefault(write.source, {})[write] = None
        self._on_change()

    def list_writes(self, source: EventSource | None = None) -> list[PendingWrite]:
        """List the writes, or those of one turn, oldest first.

        Those of one turn are found without a look at the others, because many turns may be given up at once.
        """
        return list(self._waiting) if source is None else list(self._by_source.get(source, ()))

    def has_writes(self, turn_id: UUID) -> bool:
        return any(source.turn_id == turn_id for source in self._by_source)

    def list_idle(self) -> list[PendingWrite]:
        """List the writes of the turns that no task is committing."""
        busy = {write.source for write in self._in_flight}
        return [write for write in self._waiting if write.source not in busy]

    def list_suspects(self) -> list[PendingWrite]:
        """List the writes of suspects that no task is committing."""
        return [write for write in self.list_idle() if write.source in self._suspects]

    def is_in_flight(self, write: PendingWrite) -> bool:
        return write in self._in_flight

    def take_batch(self, max_bytes: int) -> list[PendingWrite]:
        """Take the oldest writes, at most `max_bytes`.

        Writes of suspects, and writes whose smallest part is larger, stay.
        """
        if not self._waiting:
            return []
        skipped = {write.source for write in self._in_flight} | self._suspects
        batch: list[PendingWrite] = []
        room = max_bytes
        has_slow = bool(self._suspects)
        for write in self._waiting:
            if write.source in skipped:
                continue
            if write.size <= room:
                write.taken_count, write.takes_row = len(write.entries), True
                size = write.size
            else:
                skipped.add(write.source)
                size = write.take_part(min(room, max(max_bytes // _MAX_SHARE, write.first_size)))
                if size is None:
                    has_slow = has_slow or write.first_size > max_bytes
                    continue
            batch.append(write)
            room -= size
            if room <= 0:
                break
        self._in_flight.update(batch)
        if has_slow:
            self._on_slow()
        return batch

    def take_slow(self, min_bytes: int, max_bytes: int) -> list[PendingWrite]:
        """Take a write of a suspect, or a write with large parts.

        Each of those parts exceeds `min_bytes`. The one that was attempted least recently is next, and before it those
        that expire. If its smallest part is larger than `max_bytes`, take that part.
        """
        skipped = {write.source for write in self._in_flight}
        slow: list[PendingWrite] = []
        for write in self._waiting:
            if write.source in skipped:
                continue
            skipped.add(write.source)
            if write.source in self._suspects or write.first_size > min_bytes:
                slow.append(write)
        if not slow:
            return []
        write = min(slow, key=lambda write: (not write.expires, write.attempted_at))
        write.take_part(max(write.first_size, max_bytes))
        write.attempted_at = asyncio.get_running_loop().time()
        self._in_flight.add(write)
        return [write]

    def mark_suspects(self, writes: Iterable[PendingWrite]) -> None:
        """Let only `take_slow` take writes of these turns."""
        self._suspects.update(write.source for write in writes)
        self._on_change()

    def clear_suspects(self, writes: Iterable[PendingWrite] | None = None) -> None:
        """Let `take_batch` take writes of these turns again.

        Default: of all turns.
        """
        if writes is None:
            self._suspects.clear()
        else:
            self._suspects.difference_update(write.source for write in writes)
        self._on_change()

    def finish(self, batch: list[PendingWrite]) -> None:
        """Return a batch, without the writes that are complete."""
        self._in_flight.difference_update(batch)
        for write in batch:
            if not write.is_complete and write in self._by_source.get(write.source, ()):
                self._waiting.put(write)  # its size may have changed
        self.remove([write for write in batch if write.is_complete])
        self._on_change()

    def remove(self, writes: list[PendingWrite]) -> None:
        self._waiting.remove(writes)
        for write in writes:
            own = self._by_source.get(write.source, {})
            own.pop(write, None)
            if not own:
                self._by_source.pop(write.source, None)


def _do_nothing() -> None:
    """Ignore a notification that has no subscriber yet."""
