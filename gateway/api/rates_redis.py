"""What all workers count together, in Redis. Imported only where there is one: its client takes 6 MB."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from limits.aio.storage import RedisStorage
from limits.errors import StorageError
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")
PATIENCE = 0.5
PAUSE = 5.0
_AWAY = (StorageError, RedisError, OSError, TimeoutError)


class RedisAway(Exception):
    """Redis does not answer, or has not a moment ago."""


class SharedRedis:
    """A Redis, and whether it is away, as all find out together who ask it: once one of them has waited in vain, it is
    left alone for `PAUSE` seconds."""

    def __init__(self, client: Redis) -> None:
        self.client = client
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
        except _AWAY as error:
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


def connect(url: str) -> SharedRedis:
    """A client that gives up soon, with connections of its own."""
    pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 1)
    )
    return SharedRedis(Redis.from_pool(pool))


class RedisWindows(RedisStorage):
    """Windows in Redis."""

    def __init__(self, client: Redis) -> None:
        options = {"connection_pool": client.connection_pool, "key_prefix": "agent_gateway", "wrap_exceptions": True}
        super().__init__("async+redis://", implementation="redispy", **options)  # pyright: ignore[reportArgumentType]
        self._client = client

    async def give_back(self, key: str) -> None:
        """Take the newest out again."""
        await self._client.lpop(self.bridge.prefixed_key(key))  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
