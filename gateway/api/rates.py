"""How often, and how many at once: windows that move, in memory or in Redis.

The library `limits` has the windows; here is whose they are, and what happens when Redis is away.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Generator
from contextlib import contextmanager

import msgspec
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.api.access import RouteClass
from gateway.config import Settings
from gateway.errors import RateLimited, TooManyStreams
from gateway.log import get_logger

log = get_logger(__name__)

_REDIS_PATIENCE = 0.5
_REDIS_PAUSE = 5.0
_MOST_KEYS = 100_000
_LASTING: tuple[RouteClass, ...] = ("chat", "mcp")


RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class Window(msgspec.Struct, frozen=True):
    """How a caller stands. `reset`: Unix time when the oldest of their requests no longer counts."""

    allowed: bool
    limit: int
    remaining: int
    reset: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        told = (self.limit, self.remaining, math.ceil(self.reset))
        return [(name.lower().encode(), b"%d" % value) for name, value in zip(RATE_HEADERS, told, strict=True)]

    def error(self) -> RateLimited:
        seconds = max(1, math.ceil(self.reset - time.time()))
        return RateLimited(f"At most {self.limit} requests. Try again in {seconds} seconds.", retry_after=seconds)


class Rates:
    """Counts requests. With Redis, every worker's together; while it is away each worker counts by itself."""

    def __init__(self, settings: Settings) -> None:
        self._items = {
            kind: RateLimitItemPerSecond(most or settings.rate_limit_requests, settings.rate_limit_window_seconds)
            for kind, most in {
                "api": None,
                "chat": settings.rate_limit_chat_requests,
                "tools": settings.rate_limit_tools_requests,
                "mcp": settings.rate_limit_mcp_requests,
            }.items()
        }
        self.enabled = settings.rate_limit_enabled
        self._memory = MovingWindowRateLimiter(MemoryWindows())
        self._pool: ConnectionPool | None = None
        self._redis: MovingWindowRateLimiter | None = None
        self._redis_back_at = 0.0
        self._most_streams = settings.rate_limit_streams
        self._streams: Counter[str] = Counter()
        if settings.redis_url is not None and self.enabled:
            self._pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
                settings.redis_url.get_secret_value(),
                socket_timeout=_REDIS_PATIENCE,
                socket_connect_timeout=_REDIS_PATIENCE,
                retry=Retry(NoBackoff(), 1),
            )
            pool: object = self._pool
            options = {"connection_pool": pool, "key_prefix": "agent_gateway", "wrap_exceptions": True}
            self._redis = MovingWindowRateLimiter(
                RedisStorage("async+redis://", implementation="redispy", **options)  # pyright: ignore[reportArgumentType]
            )

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()

    async def hit(self, whose: str, kind: RouteClass) -> Window:
        """Count a request. Never raises: with Redis away it is counted here alone."""
        item = self._items[kind]
        if self._redis is not None and time.monotonic() >= self._redis_back_at:
            try:
                async with asyncio.timeout(2 * _REDIS_PATIENCE):
                    window = await _hit(self._redis, item, kind, whose)
            except (StorageError, OSError, TimeoutError) as error:
                log.warning("rate_limits_without_redis", error=type(error).__name__, seconds=_REDIS_PAUSE)
                self._redis_back_at = time.monotonic() + _REDIS_PAUSE
            else:
                if self._redis_back_at:
                    self._redis_back_at = 0.0
                    log.info("rate_limits_with_redis_again")
                return window
        return await _hit(self._memory, item, kind, whose)

    @contextmanager
    def stream(self, whose: str, kind: RouteClass) -> Generator[None]:
        """Hold one of the places that a caller has at this worker for answers that last.

        Raises:
            TooManyStreams: all of them are taken.
        """
        if not self.enabled or kind not in _LASTING:
            yield
            return
        if self._streams[whose] >= self._most_streams:
            raise TooManyStreams(f"At most {self._most_streams} of your requests may run at once.", retry_after=1)
        self._streams[whose] += 1
        try:
            yield
        finally:
            self._streams[whose] -= 1
            if not self._streams[whose]:
                del self._streams[whose]


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItem, kind: str, whose: str) -> Window:
    allowed = await limiter.hit(item, kind, whose)
    reset, remaining = await limiter.get_window_stats(item, kind, whose)
    return Window(allowed, item.amount, max(0, remaining) if allowed else 0, reset)


class MemoryWindows(MemoryStorage):
    """Windows of this process. The library's own looks through all of its keys, in threads, at every request."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: OrderedDict[str, deque[float]] = OrderedDict()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        window = self._window(key, expiry)
        if len(window) + amount > limit:
            return False
        window.extend([time.time()] * amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        window = self._window(key, expiry)
        return (window[0] if window else time.time(), len(window))

    def _window(self, key: str, expiry: int) -> deque[float]:
        """What of a key counts now; of very many keys the one used longest ago is forgotten."""
        window = self._windows.setdefault(key, deque())
        self._windows.move_to_end(key)
        while window and window[0] <= time.time() - expiry:
            window.popleft()
        if len(self._windows) > _MOST_KEYS:
            self._windows.popitem(last=False)
        return window
