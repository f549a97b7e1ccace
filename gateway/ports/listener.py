"""The events of a turn as a wire format reads them."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Protocol

from gateway.domain.events import Event, JournalEntry


class EventListener(Protocol):
    """Iterates over batches of a turn's entries, then knows why there are no more."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[list[JournalEntry]]: ...

    @property
    @abstractmethod
    def close_reason(self) -> str | None:
        """Why the events stopped before the turn's end; None where the last event was read."""
        ...


class EventFold(Protocol):
    """What the events of a turn are folded into, from the first on."""

    @abstractmethod
    def apply(self, event: Event) -> bool | None:
        """Take the next event. True: the events behind it are not needed."""
        ...
