"""A timeout that can be paused and extended.

It is paused, for example, while a turn waits for a person.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType


class PausableTimeout:
    """A timeout like `asyncio.timeout(seconds)` that does not count the time in pauses.

    `extend_timeout()` restarts it, until `max_seconds` have passed since its start.
    """

    def __init__(self, seconds: float, max_seconds: float | None = None) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._pauses = 0
        self._seconds = self._remaining = seconds
        self._extensible_seconds = max(0.0, (max_seconds or seconds) - seconds)

    async def __aenter__(self) -> "PausableTimeout":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._pauses = -1
        return await self._timeout.__aexit__(kind, error, trace)

    @property
    def has_expired(self) -> bool:
        return self._timeout.expired()

    @property
    def is_paused(self) -> bool:
        return self._pauses > 0

    def extend_timeout(self) -> None:
        """Restart the timeout, from any task.

        Has no effect once it has expired or its maximum is used up.
        """
        when = self._timeout.when()
        if self._pauses < 0 or self._extensible_seconds <= 0 or (when is None and self._pauses == 0):
            return
        now = asyncio.get_running_loop().time()
        remaining = self._remaining if when is None else when - now
        gain = min(self._seconds - remaining, self._extensible_seconds)
        self._extensible_seconds -= gain
        self._remaining = remaining + gain
        if when is not None and not self._timeout.expired():
            self._timeout.reschedule(now + self._remaining)

    @contextmanager
    def pause_timeout(self) -> Generator[None]:
        """Pause the timeout inside the block, from any task; pauses may overlap."""
        now = asyncio.get_running_loop().time
        when = self._timeout.when()
        if self._pauses == 0 and when is not None:
            self._remaining = when - now()
            self._timeout.reschedule(None)
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if self._pauses == 0:
                self._timeout.reschedule(now() + self._remaining)
