"""Debounced notification that the lists on offer have changed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.common.concurrency import TaskSet
from gateway.ports.tools import ChangeKind

_DEBOUNCE_SECONDS = 0.05

ChangeCallback = Callable[[frozenset[ChangeKind]], Awaitable[None]]


class ChangeNotifier:
    """Notifies subscribers once for all changes within 50 ms."""

    def __init__(self) -> None:
        self._subscribers: list[ChangeCallback] = []
        self._kinds: set[ChangeKind] = set()
        self._tasks = TaskSet("mcp tools changed")

    def add_subscriber(self, callback: ChangeCallback) -> None:
        """Await `callback` after changes, with the lists that have changed."""
        self._subscribers.append(callback)

    def schedule_notification(self, kinds: Iterable[ChangeKind] = ("tools",)) -> None:
        """Notify in 50 ms of these and all other changes until then."""
        if not self._subscribers:
            return
        is_scheduled = bool(self._kinds)
        self._kinds.update(kinds)
        if self._kinds and not is_scheduled:
            self._tasks.spawn(self._notify_subscribers())

    async def cancel_notification(self) -> None:
        """Cancel the scheduled notification."""
        await self._tasks.stop()

    async def _notify_subscribers(self) -> None:
        await asyncio.sleep(_DEBOUNCE_SECONDS)
        kinds = frozenset(self._kinds)
        self._kinds.clear()  # before the callbacks: a change while they run needs another notification
        for callback in self._subscribers:
            await callback(kinds)
