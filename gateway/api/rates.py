"""How often, and how many at once: windows that move, in memory or in Redis.

The library `limits` has the windows; here is whose they are, and what happens when Redis is away.
"""

import math
import time
from collections import OrderedDict, deque
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from gateway.api.access import RouteClass
from gateway.api.places import Places
from gateway.config import Settings
from gateway.errors import RateLimited
from gateway.messages import Principal
from gateway.shared_redis import RedisAway, SharedRedis

if TYPE_CHECKING:
    from gateway.api.rates_redis import RedisWindows

_MOST_KEYS = 100_000
RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class Window(msgspec.Struct, frozen=True):
    """How a caller stands. `reset`: Unix time when the oldest of their requests no longer counts."""

    allowed: bool
    limit: int
    remaining: int
    reset: float
    seconds: int

    def headers(self) -> list[tuple[bytes, bytes]]:
        told = (self.limit, self.remaining, math.ceil(self.reset))
        return [(name.lower().encode(), b"%d" % value) for name, value in zip(RATE_HEADERS, told, strict=True)]

    def error(self) -> RateLimited:
        seconds = max(1, math.ceil(self.reset - time.time()))
        return RateLimited(
            f"At most {self.limit} requests in {self.seconds} seconds. Try again in {seconds} seconds.",
            retry_after=seconds,
        )


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
        self._memory = _Windows(MemoryWindows())
        self._redis: SharedRedis | None = None
        self._shared: _Windows | None = None
        self._most_streams = settings.rate_limit_streams
        if settings.redis_url is not None and self.enabled:
            from gateway.api import rates_redis

            self._redis = rates_redis.connect(settings.redis_url.get_secret_value())
            self._shared = _Windows(rates_redis.RedisWindows(self._redis.client))
        self._places = Places(self._redis)

    async def close(self) -> None:
        await self._places.close()
        if self._redis is not None:
            await self._redis.client.aclose()

    async def hit(self, principal: Principal | None, source: str, kind: RouteClass) -> Window:
        """Count a request of a principal; of nobody's, by where it comes from. It counts in the window of its user and
        class, and in that of its key, if that has one; or, where one of them is full, in none.

        Never raises: with Redis away it is counted here alone.
        """
        counted = self._counted(principal, source, kind)
        if self._redis is not None and self._shared is not None:
            with suppress(RedisAway):
                return await self._redis.ask("rate_limits", partial(self._shared.hit, counted))
        return await self._memory.hit(counted)

    def _counted(self, principal: Principal | None, source: str, kind: RouteClass) -> "list[_Counted]":
        if principal is None:
            return [(self._items["api"], "api", f"source {source}")]
        of_user = (self._items[kind], kind, f"user {principal.user}")
        limits = principal.limits
        if limits is None or limits.requests is None or principal.key is None:
            return [of_user]
        return [(RateLimitItemPerSecond(limits.requests, limits.window_seconds), "key", principal.key), of_user]

    async def place(self, principal: Principal | None, source: str) -> AbstractContextManager[None]:
        """One of the places that a key has for answers that last.

        Raises:
            TooManyStreams: all of them are taken.
        """
        if not self.enabled:
            return nullcontext()
        most, whose = self._most_streams, f"source {source}"
        if principal is not None:
            whose = f"{principal.key} {principal.user}"
            own = principal.limits.streams if principal.limits is not None else None
            most = most if own is None else min(most, own)
        return await self._places.take(whose, most)


_Counted = tuple[RateLimitItem, str, str]


class _Windows:
    """Several windows at once."""

    def __init__(self, storage: "MemoryWindows | RedisWindows") -> None:
        self._storage = storage
        self._limiter = MovingWindowRateLimiter(storage)

    async def hit(self, counted: list[_Counted]) -> Window:
        """How the fullest of them stands, after this. A request that one of them refuses counts in none."""
        for number, (item, *names) in enumerate(counted):
            if not await self._limiter.hit(item, *names):
                for taken, *others in counted[:number]:
                    await self._storage.give_back(taken.key_for(*others))
                return await self._window(False, item, names)
        windows = [await self._window(True, item, names) for item, *names in counted]
        return min(windows, key=lambda window: window.remaining)

    async def _window(self, allowed: bool, item: RateLimitItem, names: list[str]) -> Window:
        reset, remaining = await self._limiter.get_window_stats(item, *names)
        return Window(allowed, item.amount, max(0, remaining) if allowed else 0, reset, item.get_expiry())


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

    async def give_back(self, key: str) -> None:
        """Take the newest out again."""
        if window := self._windows.get(key):
            window.pop()

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
