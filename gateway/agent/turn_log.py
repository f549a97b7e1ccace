"""The events of one turn in memory: numbered, shown to readers once they are durable, read by any number of them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from uuid import UUID

from gateway.events import Delta, Entry, Event, TurnCancelled, TurnCompleted, TurnFailed, encode

_DELTAS = Delta.__args__
_ENDS = (TurnCompleted, TurnFailed, TurnCancelled)


class TurnLog:
    """Readers hold an index, not a queue: a slow one costs nothing and slows nobody.

    A delta is shown at once, any other event (and what follows it) when `committed` says that it is durable;
    with `synchronous`, deltas wait as well.
    """

    def __init__(self, turn_id: UUID, *, synchronous: bool = False) -> None:
        self.turn_id = turn_id
        self.entries: list[Entry] = []
        self.closing: str | None = None
        self._synchronous = synchronous
        self._undurable: deque[int] = deque()
        self._taken = 0
        self._readers: list[asyncio.Future[None]] = []

    def append(self, event: Event) -> Entry:
        """Number the event and keep it."""
        entry = Entry(len(self.entries) + 1, event, encode(event))
        self.entries.append(entry)
        if self._synchronous or not isinstance(event, _DELTAS):
            self._undurable.append(entry.seq)
        elif not self._undurable:
            self._wake()
        return entry

    def take(self) -> list[Entry]:
        """The entries that the journal has not been given yet. It must write them, in this order."""
        fresh = self.entries[self._taken :]
        self._taken = len(self.entries)
        return fresh

    def committed(self, seq: int) -> None:
        """All up to `seq` is durable."""
        while self._undurable and self._undurable[0] <= seq:
            self._undurable.popleft()
        self._wake()

    def close(self, reason: str) -> None:
        """Send the readers away before the turn's end: this process will not show it to them."""
        self.closing = self.closing or reason
        self._wake()

    @property
    def visible(self) -> int:
        """How many entries readers may see."""
        return self._undurable[0] - 1 if self._undurable else len(self.entries)

    @property
    def ended(self) -> bool:
        """Whether the turn's last event is there for readers to see."""
        return bool(self.entries) and not self._undurable and isinstance(self.entries[-1].event, _ENDS)

    async def follow(self, after: int = 0) -> AsyncGenerator[list[Entry]]:
        """Yield the entries behind number `after`, all there are at a time, until the turn ends or the log closes."""
        while True:
            if self.visible > after:
                batch = self.entries[after : self.visible]
                after += len(batch)
                yield batch
            elif self.ended or self.closing:
                return
            else:
                await self._next()

    async def _next(self) -> None:
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        await reader

    def _wake(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)
