"""Weighted fair queueing, self-clocked.

Each user gets a share, whatever the number of their requests. See Golestani, "A self-clocked fair queueing scheme for
broadband applications", 1994.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from gateway.ports.rate_limit import QueuedItem

T = TypeVar("T", bound=QueuedItem)


class _UserQueue(Generic[T]):
    """The waiting items of one user, in order.

    `start`: the virtual time at which the first one begins.
    """

    __slots__ = ("items", "start", "weight")

    def __init__(self, start: float, weight: float) -> None:
        self.items: deque[T] = deque()
        self.start = start
        self.weight = weight

    def get_finish_time(self) -> float:
        """Return the virtual end time of the first item."""
        return self.start + self.items[0].tokens / self.weight

    def sum_tokens(self) -> float:
        return sum(item.tokens for item in self.items)


class FairQueue(Generic[T]):
    """The waiting items of all users.

    A user without waiting items has no state. Only the first item of a user has a virtual time, so removing an item
    does not delay those behind it.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._user_queues: dict[str, _UserQueue[T]] = {}
        self._virtual_time = 0.0

    def __bool__(self) -> bool:
        return bool(self._user_queues)

    def __iter__(self) -> Iterator[T]:
        return (item for user_queue in self._user_queues.values() for item in user_queue.items)

    def add_item(self, item: T) -> None:
        if (user_queue := self._user_queues.get(item.user)) is None:
            user_queue = self._user_queues[item.user] = self._create_user_queue(item.user)
        user_queue.items.append(item)

    def find_next(self) -> T | None:
        """Return the item to serve next; None if no item waits."""
        if not self._user_queues:
            return None
        return min(self._user_queues.values(), key=_UserQueue[T].get_finish_time).items[0]

    def serve_item(self, item: T) -> None:
        """Remove a user's first item and charge the user for it."""
        user_queue = self._user_queues[item.user]
        user_queue.start = self._virtual_time = max(self._virtual_time, user_queue.get_finish_time())
        self.remove_item(item)

    def remove_item(self, item: T) -> None:
        """Remove an item without serving it."""
        user_queue = self._user_queues[item.user]
        user_queue.items.remove(item)
        if not user_queue.items:
            del self._user_queues[item.user]
        if not self._user_queues:
            self._virtual_time = 0.0

    def estimate_ahead(self, item: T) -> tuple[float, float]:
        """Estimate the tokens and requests ahead of a new item.

        Those would be served before it. Users are treated as continuous flows, so the result is an approximation.
        """
        own_queue = self._user_queues.get(item.user) or self._create_user_queue(item.user)
        finish_time = own_queue.start + (own_queue.sum_tokens() + item.tokens) / own_queue.weight
        tokens, requests = 0.0, 0.0
        for user_queue in self._user_queues.values():
            total = user_queue.sum_tokens()
            served_tokens = total
            if user_queue is not own_queue:
                served_tokens = min(total, max(0.0, (finish_time - user_queue.start) * user_queue.weight))
            tokens += served_tokens
            requests += served_tokens / total * len(user_queue.items)
        return tokens, requests

    def _create_user_queue(self, user: str) -> _UserQueue[T]:
        return _UserQueue(self._virtual_time, self._weights.get(user, 1.0))
