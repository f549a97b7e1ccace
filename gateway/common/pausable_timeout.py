"""A timeout that can be paused.

It is paused, for example, while a turn waits for a person.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType


class PausableTimeout:
    """A timeout like `asyncio.timeout(seconds)` that does not count the time in pauses."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._pauses = 0
        self._remaining = seconds

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
