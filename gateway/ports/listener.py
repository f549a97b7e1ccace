"""The events of a turn as a wire format reads them."""

from collections.abc import AsyncIterator
from typing import Protocol

from gateway.domain.events import JournalEntry


class EventListener(Protocol):
    """Iterates over batches of a turn's entries, then knows why there are no more."""

    def __aiter__(self) -> AsyncIterator[list[JournalEntry]]: ...

    @property
    def close_reason(self) -> str | None:
        """Why the events stopped before the turn's end; None where the last event was read."""
        ...
