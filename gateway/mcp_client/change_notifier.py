"""Debounced notification that the lists on offer have changed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.common.concurrency import TaskSet
from gateway.ports.tools import ChangeKind

_DEBOUNCE_SECONDS = 0.05

ChangeCallback = Callable[[frozenset[ChangeKind], str | None], Awaitable[None]]
"""Receives the changed lists and their user; None: all users."""


class ChangeNotifier:
    """Notifies subscribers once for a user's changes within 50 ms."""

    def __init__(self) -> None:
        self._subscribers: list[ChangeCallback] = []
        self._kinds: dict[str | None, set[ChangeKind]] = {}
        self._tasks = TaskSet("mcp tools changed")

    def add_subscriber(self, callback: ChangeCallback) -> None:
        """Await `callback` after changes, with the lists that have changed."""
        self._subscribers.append(callback)

    def schedule_notification(self, kinds: Iterable[ChangeKind] = ("tools",), user: str | None = None) -> None:
        """Notify in 50 ms of these and all other changes until then.

        `user`: the only one whom the change concerns; None: it concerns all.
        """
        if not self._subscribers:
            return
        is_scheduled = bool(self._kinds)
        if changed := set(kinds):
            self._kinds.setdefault(user, set()).update(changed)
        if self._kinds and not is_scheduled:
            self._tasks.spawn(self._notify_subscribers())

    async def cancel_notification(self) -> None:
        """Cancel the scheduled notification."""
        await self._tasks.stop()

    async def _notify_subscribers(self) -> None:
        await asyncio.sleep(_DEBOUNCE_SECONDS)
        kinds_by_user, self._kinds = self._kinds, {}  # before the callbacks: a change while they run needs another
        told_to_all = kinds_by_user.get(None, set())
        for user, kinds in kinds_by_user.items():
            if news := frozenset(kinds if user is None else kinds - told_to_all):
                for callback in self._subscribers:
                    await callback(news, user)
