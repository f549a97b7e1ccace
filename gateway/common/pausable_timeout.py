"""A time limit that stands still while something else than the work is waited for: a person."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType


class Deadline:
    """Like `asyncio.timeout(seconds)`: the block inside may take so long, without the time it stood still."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._waits = 0
        self._left = seconds

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._waits = -1
        return await self._timeout.__aexit__(kind, error, trace)

    @property
    def expired(self) -> bool:
        return self._timeout.expired()

    @contextmanager
    def standing_still(self) -> Generator[None]:
        """Count no time, from whatever task."""
        now = asyncio.get_running_loop().time
        when = self._timeout.when()
        if self._waits == 0 and when is not None:
            self._left = when - now()
            self._timeout.reschedule(None)
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if self._waits == 0:
                self._timeout.reschedule(now() + self._left)
