"""A value that many callers read and one fetches."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class CachedValue(Generic[T]):
    """Value that is fetched at most once per `max_age_seconds`.

    Callers that arrive during a fetch share its result. `fetch` has a time limit of its own.
    """

    def __init__(self, fetch: Callable[[], Awaitable[T]], max_age_seconds: float) -> None:
        self._fetch = fetch
        self._max_age_seconds = max_age_seconds
        self._lock = asyncio.Lock()
        self._fetched: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return the value, which was fetched recently or is fetched now."""
        newer_than = time.monotonic() - self._max_age_seconds
        async with self._lock:
            if self._fetched is None or self._fetched[0] < newer_than:
                started_at = time.monotonic()
                self._fetched = (started_at, await self._fetch())
            return self._fetched[1]
