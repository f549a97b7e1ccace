"""The events of a turn as a wire format reads them."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Protocol

from gateway.domain.events import Event, JournalEntry


class EventListener(Protocol):
    """Iterates over batches of a turn's entries.

    At the end, `close_reason` says why it stopped.
    """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[list[JournalEntry]]: ...

    @property
    @abstractmethod
    def close_reason(self) -> str | None:
        """Reason why the events stopped before the turn's end.

        None if the last event was read.
        """
        ...


class EventFold(Protocol):
    """A result built from a turn's events, in order."""

    @abstractmethod
    def apply(self, event: Event) -> bool | None:
        """Apply the next event. True: the events after it are not needed."""
        ...
