"""How often, and how many at once: windows that move, in memory or in Redis.

The library `limits` has those in Redis; here are the others, whose they all are, and what happens when Redis is away.
"""

import math
import time
from collections import OrderedDict, deque
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from gateway.api.rate_limit.stream_slots import Places
from gateway.api.security.permissions import RouteClass
from gateway.common.redis import RedisAway, SharedRedis
from gateway.config import Settings
from gateway.domain.errors import RateLimited
from gateway.domain.messages import Principal

if TYPE_CHECKING:
    from gateway.api.rate_limit.redis_windows import RedisWindows

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
        self._most = {
            kind: most or settings.rate_limit_requests
            for kind, most in {
                "api": None,
                "chat": settings.rate_limit_chat_requests,
                "tools": settings.rate_limit_tools_requests,
                "mcp": settings.rate_limit_mcp_requests,
            }.items()
        }
        self._seconds = settings.rate_limit_window_seconds
        self.enabled = settings.rate_limit_enabled
        self._memory = _Windows(MemoryWindows())
        self._redis: SharedRedis | None = None
        self._shared: _Windows | None = None
        self._most_streams = settings.rate_limit_streams
        if settings.redis_url is not None and self.enabled:
            from gateway.api.rate_limit import redis_windows

            self._redis = redis_windows.connect(settings.redis_url.get_secret_value())
            self._shared = _Windows(redis_windows.RedisWindows(self._redis.client))
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
            return [_Counted(f"api/source {source}", self._most["api"], self._seconds)]
        of_user = _Counted(f"{kind}/user {principal.user}", self._most[kind], self._seconds)
        limits = principal.limits
        if limits is None or limits.requests is None or principal.key is None:
            return [of_user]
        return [_Counted(f"key/{principal.key}", limits.requests, limits.window_seconds), of_user]

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


class _Counted(msgspec.Struct, frozen=True):
    """A window that a request counts in: at most so many in any so many seconds."""

    whose: str
    most: int
    seconds: int

    @property
    def key(self) -> str:
        """With other limits it is another window."""
        return f"{self.whose}/{self.most}/{self.seconds}"


class _Windows:
    """Several windows at once."""

    def __init__(self, storage: "MemoryWindows | RedisWindows") -> None:
        self._storage = storage

    async def hit(self, counted: list[_Counted]) -> Window:
        """How the fullest of them stands, after this. A request that one of them refuses counts in none."""
        for number, one in enumerate(counted):
            if not await self._storage.acquire_entry(one.key, one.most, one.seconds):
                for taken in counted[:number]:
                    await self._storage.give_back(taken.key)
                return await self._window(False, one)
        windows = [await self._window(True, one) for one in counted]
        return min(windows, key=lambda window: window.remaining)

    async def _window(self, allowed: bool, one: _Counted) -> Window:
        start, number = await self._storage.get_moving_window(one.key, one.most, one.seconds)
        remaining = max(0, one.most - number) if allowed else 0
        return Window(allowed, one.most, remaining, start + one.seconds, one.seconds)


class MemoryWindows:
    """Windows of this process, as `limits` has them. Its own bring 1.5 MB, and look through all of their keys, in
    threads, at every request."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, deque[float]] = OrderedDict()

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        window = self._window(key, expiry)
        if len(window) >= limit:
            return False
        window.append(time.time())
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
