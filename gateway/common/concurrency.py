"""Background tasks, bounded waits and bounded collections.

Other modules make no tasks of their own. CONTRIBUTING.md lists the exceptions with their reasons. The tool server
imports tasks and waits from `gateway_runtime.background`, where they are defined.

| need | use |
|---|---|
| a loop that runs as long as its owner | `SupervisedTask` |
| tasks of one owner that end by themselves | `TaskSet` |
| work that another event ends early | `run_until`, or `Interruption` without a further task |
| the result of a future that stays | `wait_for_result` |
| an event whose message may be lost | `wait_or_poll` |
| an event of each stream or turn | `LightEvent` |
| one time limit for several waits | `Deadline` |
| growing pauses between attempts | `Backoff` |
| synchronous producers in front of a slower consumer | `BoundedQueue` |
| a mapping that forgets its least recently used key | `LruDict` |

A task that must fail or be cancelled together with its caller belongs in an `asyncio.TaskGroup` instead, and a cache
whose entries expire is a `cachetools.TTLCache`.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from cachetools import LRUCache

from gateway_runtime.background.tasks import SupervisedTask, TaskRegistry, TaskSet
from gateway_runtime.background.waits import (
    Backoff,
    Deadline,
    Interruption,
    LightEvent,
    WorkInterrupted,
    run_until,
    run_without_wait,
    wait_for_result,
    wait_or_poll,
)

__all__ = [
    "Backoff",
    "BoundedQueue",
    "Deadline",
    "Interruption",
    "LightEvent",
    "LruDict",
    "SupervisedTask",
    "TaskRegistry",
    "TaskSet",
    "WorkInterrupted",
    "run_until",
    "run_without_wait",
    "wait_for_result",
    "wait_or_poll",
]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A queue between producers that cannot wait and a batch consumer.

    The consumer takes many items at once. `put()` always succeeds, since a synchronous producer has nowhere to wait.
    Producers that can wait do so beforehand in `wait_for_capacity()`. An item counts until `remove()`, so a batch that
    is being worked on still fills the queue.

    `max_size` is in the unit of `size_of`, by default items. The queue becomes full above `max_size`, and stays full
    until its size is at most half of that. Items are compared by identity.
    """

    def __init__(self, max_size: int, *, size_of: Callable[[T], int] | None = None) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._items: dict[int, T] = {}
        self._sizes: dict[int, int] = {}
        self._size = 0
        self.is_full = False
        self._has_items = asyncio.Event()
        self._has_capacity = asyncio.Event()
        self._has_capacity.set()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items, oldest first. The queue must not change meanwhile."""
        return iter(self._items.values())

    def put(self, item: T) -> None:
        """Append an item, also to a full queue.

        An item that is in the queue keeps its place, and its size is measured again.
        """
        key = id(item)
        size = 1 if self._size_of is None else self._size_of(item)
        self._size += size - self._sizes.get(key, 0)
        self._items[key], self._sizes[key] = item, size
        if self._size > self._max_size:
            self.is_full = True
            self._has_capacity.clear()
        self._has_items.set()

    async def wait_for_items(self) -> list[T]:
        """Wait for an item.

        Return all items, oldest first. They stay in the queue.
        """
        await self._has_items.wait()
        return list(self)

    async def wait_for_capacity(self) -> None:
        """Return when the queue is not full."""
        await self._has_capacity.wait()

    def remove(self, items: list[T]) -> None:
        """Remove items. Those that are not in the queue are ignored."""
        for item in items:
            self._items.pop(id(item), None)
            self._size -= self._sizes.pop(id(item), 0)
        if self._size <= self._max_size // 2:
            self.is_full = False
            self._has_capacity.set()
        if not self._items:
            self._has_items.clear()


class LruDict(LRUCache[K, V]):
    """A mapping of at most `max_items` keys.

    A new key beyond that replaces the least recently used one. Reading and writing a key both count as use, also by
    iterating over items; `in` and iteration over keys, whose order is unspecified, do not. `on_evict(key, value)` is
    called for a replaced key, not for one that is deleted or popped.
    """

    def __init__(self, max_items: int, *, on_evict: Callable[[K, V], None] | None = None) -> None:
        super().__init__(maxsize=max_items)
        self._on_evict = on_evict

    def popitem(self) -> tuple[K, V]:
        """Remove and return the least recently used key and its value.

        Insertion into a full mapping calls this.
        """
        key, value = super().popitem()
        if self._on_evict is not None:
            self._on_evict(key, value)
        return key, value
