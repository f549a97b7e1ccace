"""A Redis that several gateways share and that may become unavailable.

The client library takes 6 MB, so only the modules that connect import it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from gateway.common.logging import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = get_logger(__name__)

T = TypeVar("T")
TIMEOUT_SECONDS = 0.5
BACKOFF_SECONDS = 5.0


class RedisUnavailable(Exception):
    """Redis does not answer, or a backoff has not ended.

    A backoff follows each such failure.
    """


class SharedRedis:
    """A Redis client with a shared backoff.

    After a failed call, calls fail at once for `backoff_seconds`.
    """

    def __init__(
        self,
        client: "Redis",
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        from limits.errors import StorageError  # `limits` wraps errors of Redis in it
        from redis.exceptions import RedisError

        self.client = client
        self._timeout_seconds = timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._errors = (StorageError, RedisError, OSError, TimeoutError)
        self._retry_at = 0.0
        self._error = ""
        self._degraded_features: set[str] = set()

    async def call_redis(
        self, feature: str, operation: Callable[[], Awaitable[T]], *, ignore_backoff: bool = False
    ) -> T:
        """Run one operation on Redis, for at most `timeout_seconds`.

        The log names the `feature` that works without Redis meanwhile. With `ignore_backoff`, Redis is called even
        during the backoff: for work that no request waits for.

        Raises:
            RedisUnavailable: Redis did not answer, or did not within the last `backoff_seconds`.
        """
        if not ignore_backoff and time.monotonic() < self._retry_at:
            self._log_degraded(feature)
            raise RedisUnavailable
        try:
            async with asyncio.timeout(self._timeout_seconds):
                result = await operation()
        except self._errors as error:
            self._retry_at = time.monotonic() + self._backoff_seconds
            self._error = type(error).__name__
            self._log_degraded(feature)
            raise RedisUnavailable from error
        self._retry_at = 0.0
        if feature in self._degraded_features:
            self._degraded_features.remove(feature)
            log.info(f"{feature}_with_redis_again")
        return result

    def _log_degraded(self, feature: str) -> None:
        if feature not in self._degraded_features:
            self._degraded_features.add(feature)
            log.warning(f"{feature}_without_redis", error=self._error, seconds=self._backoff_seconds)
