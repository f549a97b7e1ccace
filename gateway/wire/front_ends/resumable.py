"""Base of streams that continue a turn after an answer."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from gateway.domain import events as e
from gateway.ports.listener import EventFold

T = TypeVar("T")


class ResumableWriter(EventFold, Generic[T]):
    """Writes a turn's events as those of a front end's format.

    With `answered`, the client has everything before the answer to one of these questions, so it is not written again.
    """

    def __init__(self, answered: Iterable[str]) -> None:
        self._answered = frozenset(answered)
        self._is_silent = bool(self._answered)

    def apply(self, event: e.Event) -> None:
        self.write_event(event)

    def write_event(self, event: e.Event) -> list[T]:
        """Return what the format has for an event."""
        if not self._is_silent:
            return self._convert_event(event)
        is_answer = isinstance(event, e.InputResolved) and event.input_id in self._answered
        if is_answer or isinstance(event, e.TurnEnd):  # or the turn ended without the answer
            return [*self._resume_writing(), *self._convert_event(event)]
        self._convert_event(event)
        return []

    @abstractmethod
    def _convert_event(self, event: e.Event) -> list[T]: ...

    @abstractmethod
    def _resume_writing(self) -> list[T]:
        """Return the start of the continued stream, and end the silence."""
        ...
