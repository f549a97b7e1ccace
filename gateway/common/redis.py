"""A Redis that several gateways share, and that may go away. Its client, of 6 MB, is imported by who connects to it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from gateway.common.logging import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = get_logger(__name__)

T = TypeVar("T")
PATIENCE = 0.5
PAUSE = 5.0


class RedisAway(Exception):
    """Redis does not answer, or has not a moment ago."""


class SharedRedis:
    """A Redis, and whether it is away, as all find out together who ask it: once one of them has waited in vain, it is
    left alone for `PAUSE` seconds."""

    def __init__(self, client: "Redis") -> None:
        from limits.errors import StorageError  # in which that library wraps those of Redis
        from redis.exceptions import RedisError

        self.client = client
        self._errors = (StorageError, RedisError, OSError, TimeoutError)
        self._back_at = 0.0
        self._error = ""
        self._without: set[str] = set()

    async def ask(self, what: str, asking: Callable[[], Awaitable[T]], *, in_pause: bool = False) -> T:
        """Its answer, within `PATIENCE` seconds. `what` is what the log says is without Redis; `in_pause`: nobody waits
        for this, so it is asked even if it was away a moment ago.

        Raises:
            RedisAway: there is none.
        """
        if not in_pause and time.monotonic() < self._back_at:
            self._tell(what)
            raise RedisAway
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await asking()
        except self._errors as error:
            self._back_at = time.monotonic() + PAUSE
            self._error = type(error).__name__
            self._tell(what)
            raise RedisAway from error
        self._back_at = 0.0
        if what in self._without:
            self._without.remove(what)
            log.info(f"{what}_with_redis_again")
        return answer

    def _tell(self, what: str) -> None:
        if what not in self._without:
            self._without.add(what)
            log.warning(f"{what}_without_redis", error=self._error, seconds=PAUSE)
