"""Debounced notification that the tools on offer have changed."""

import asyncio
from collections.abc import Awaitable, Callable

from gateway.common.concurrency import TaskSet

_DEBOUNCE_SECONDS = 0.05


class ChangeNotifier:
    """Notifies subscribers once for all changes within 50 ms."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[], Awaitable[None]]] = []
        self._is_scheduled = False
        self._tasks = TaskSet("mcp tools changed")

    def add_subscriber(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback` after changes."""
        self._subscribers.append(callback)

    def schedule_notification(self) -> None:
        """Notify in 50 ms, unless that is scheduled already."""
        if self._subscribers and not self._is_scheduled:
            self._is_scheduled = True
            self._tasks.spawn(self._notify_subscribers())

    async def cancel_notification(self) -> None:
        """Cancel the scheduled notification."""
        await self._tasks.stop()

    async def _notify_subscribers(self) -> None:
        await asyncio.sleep(_DEBOUNCE_SECONDS)
        self._is_scheduled = False  # before the callbacks: a change while they run needs another notification
        for callback in self._subscribers:
            await callback()
