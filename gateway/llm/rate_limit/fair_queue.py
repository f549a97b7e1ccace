"""Weighted fair queueing (self-clocked): who waits is served by shares, whatever the number of anyone's requests."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What can wait: `user` names whose it is, `tokens` (over 0) what it costs."""

    @property
    def user(self) -> str: ...
    @property
    def tokens(self) -> float: ...


T = TypeVar("T", bound=Waiting)


class _Line(Generic[T]):
    """What one user waits for, first come first; `start` is the virtual time at which the first of it begins."""

    __slots__ = ("items", "start", "weight")

    def __init__(self, start: float, weight: float) -> None:
        self.items: deque[T] = deque()
        self.start = start
        self.weight = weight

    def finish(self) -> float:
        """The virtual time at which the first will have been served."""
        return self.start + self.items[0].tokens / self.weight

    def total(self) -> float:
        return sum(item.tokens for item in self.items)


class FairQueue(Generic[T]):
    """The waiting of all users. A user is known only while something of theirs waits.

    Only the first of each line has its time, so one that leaves takes nothing from those behind it.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._lines: dict[str, _Line[T]] = {}
        self._now = 0.0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line.items)

    def add(self, item: T) -> None:
        if (line := self._lines.get(item.user)) is None:
            line = self._lines[item.user] = self._new_line(item.user)
        line.items.append(item)

    def first(self) -> T | None:
        """Whose turn it is."""
        if not self._lines:
            return None
        return min(self._lines.values(), key=_Line[T].finish).items[0]

    def serve(self, item: T) -> None:
        """Take out the first of a line: its user has had its share."""
        line = self._lines[item.user]
        line.start = self._now = max(self._now, line.finish())
        self.remove(item)

    def remove(self, item: T) -> None:
        """Take out what will not be served, wherever it waits."""
        line = self._lines[item.user]
        line.items.remove(item)
        if not line.items:
            del self._lines[item.user]
        if not self._lines:
            self._now = 0.0

    def ahead(self, item: T) -> tuple[float, float]:
        """How many tokens and requests would be served before this newcomer, with every line as if it flowed."""
        own = self._lines.get(item.user) or self._new_line(item.user)
        finish = own.start + (own.total() + item.tokens) / own.weight
        tokens, requests = 0.0, 0.0
        for line in self._lines.values():
            total = line.total()
            served = total if line is own else min(total, max(0.0, (finish - line.start) * line.weight))
            tokens += served
            requests += served / total * len(line.items)
        return tokens, requests

    def _new_line(self, user: str) -> _Line[T]:
        return _Line(self._now, self._weights.get(user, 1.0))
