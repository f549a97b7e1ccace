"""Weighted fair queueing (self-clocked): who waits is served by shares, whatever the number of anyone's requests."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from gateway.ports.rate_limit import QueuedItem

T = TypeVar("T", bound=QueuedItem)


class _UserQueue(Generic[T]):
    """What one user waits for, first come first; `start` is the virtual time at which the first of it begins."""

    __slots__ = ("items", "start", "weight")

    def __init__(self, start: float, weight: float) -> None:
        self.items: deque[T] = deque()
        self.start = start
        self.weight = weight

    def get_finish_time(self) -> float:
        """The virtual time at which the first will have been served."""
        return self.start + self.items[0].tokens / self.weight

    def sum_tokens(self) -> float:
        return sum(item.tokens for item in self.items)


class FairQueue(Generic[T]):
    """The waiting of all users. A user is known only while something of theirs waits.

    Only the first of each line has its time, so one that leaves takes nothing from those behind it.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._user_queues: dict[str, _UserQueue[T]] = {}
        self._virtual_time = 0.0

    def __bool__(self) -> bool:
        return bool(self._user_queues)

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._user_queues.values() for item in line.items)

    def add_item(self, item: T) -> None:
        if (line := self._user_queues.get(item.user)) is None:
            line = self._user_queues[item.user] = self._create_user_queue(item.user)
        line.items.append(item)

    def find_next(self) -> T | None:
        """Whose turn it is."""
        if not self._user_queues:
            return None
        return min(self._user_queues.values(), key=_UserQueue[T].get_finish_time).items[0]

    def serve_item(self, item: T) -> None:
        """Take out the first of a line: its user has had its share."""
        line = self._user_queues[item.user]
        line.start = self._virtual_time = max(self._virtual_time, line.get_finish_time())
        self.remove_item(item)

    def remove_item(self, item: T) -> None:
        """Take out what will not be served, wherever it waits."""
        line = self._user_queues[item.user]
        line.items.remove(item)
        if not line.items:
            del self._user_queues[item.user]
        if not self._user_queues:
            self._virtual_time = 0.0

    def estimate_ahead(self, item: T) -> tuple[float, float]:
        """How many tokens and requests would be served before this newcomer, with every line as if it flowed."""
        own = self._user_queues.get(item.user) or self._create_user_queue(item.user)
        finish = own.start + (own.sum_tokens() + item.tokens) / own.weight
        tokens, requests = 0.0, 0.0
        for line in self._user_queues.values():
            total = line.sum_tokens()
            served = total if line is own else min(total, max(0.0, (finish - line.start) * line.weight))
            tokens += served
            requests += served / total * len(line.items)
        return tokens, requests

    def _create_user_queue(self, user: str) -> _UserQueue[T]:
        return _UserQueue(self._virtual_time, self._weights.get(user, 1.0))
