"""The events of a turn as a wire format reads them."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
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


class FrameSource(Protocol):
    """Async context manager of the frames' source."""

    @property
    def is_over(self) -> bool:
        """Whether only the client's reading takes time, because the turn ended."""
        ...

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...
