"""Rate limits over moving windows, in memory or in Redis.

The library `limits` implements the windows in Redis. This module has those in memory, the rules that apply to a
request, and the fallback to memory while Redis is unavailable.
"""

import math
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from gateway.api.rate_limit.stream_slots import StreamLimiter
from gateway.api.security.permissions import RouteClass
from gateway.common.concurrency import LruDict
from gateway.common.redis import BACKOFF_SECONDS, RedisUnavailable, SharedRedis
from gateway.config import Settings
from gateway.domain.errors import RateLimited
from gateway.domain.messages import Principal

if TYPE_CHECKING:
    from gateway.api.rate_limit.redis_windows import RedisMovingWindow

_MAX_KEYS = 100_000
RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class RateLimitStatus(msgspec.Struct, frozen=True):
    """How a caller stands. `reset`: Unix time when the oldest of their requests no longer counts."""

    allowed: bool
    limit: int
    remaining: int
    reset_at: float
    window_seconds: int

    def to_headers(self) -> list[tuple[bytes, bytes]]:
        told = (self.limit, self.remaining, math.ceil(self.reset_at))
        return [(name.lower().encode(), b"%d" % value) for name, value in zip(RATE_HEADERS, told, strict=True)]

    def to_error(self) -> RateLimited:
        seconds = max(1, math.ceil(self.reset_at - time.time()))
        return RateLimited(
            f"At most {self.limit} requests in {self.window_seconds} seconds. Try again in {seconds} seconds.",
            retry_after=seconds,
        )


class RateLimiter:
    """Counts requests. With Redis, every worker's together; while it is away each worker counts by itself."""

    def __init__(self, settings: Settings, *, redis_backoff_seconds: float = BACKOFF_SECONDS) -> None:
        self._limits = {
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
        self._memory = _WindowCounter(InMemoryMovingWindow())
        self._redis: SharedRedis | None = None
        self._shared: _WindowCounter | None = None
        self._max_streams = settings.rate_limit_streams
        if settings.redis_url is not None and self.enabled:
            from gateway.api.rate_limit import redis_windows

            self._redis = redis_windows.connect_to_redis(
                settings.redis_url.get_secret_value(),
                timeout_seconds=settings.redis_timeout_seconds,
                backoff_seconds=redis_backoff_seconds,
            )
            self._shared = _WindowCounter(redis_windows.RedisMovingWindow(self._redis.client))
        self._stream_limiter = StreamLimiter(self._redis)

    async def close(self) -> None:
        await self._stream_limiter.close()
        if self._redis is not None:
            await self._redis.client.aclose()

    async def check_request(self, principal: Principal | None, source: str, kind: RouteClass) -> RateLimitStatus:
        """Count a request of a principal; of nobody's, by where it comes from. It counts in the window of its user and
        class, and in that of its key, if that has one; or, where one of them is full, in none.

        Never raises: with Redis away it is counted here alone.
        """
        counted = self._select_rules(principal, source, kind)
        if self._redis is not None and self._shared is not None:
            with suppress(RedisUnavailable):
                return await self._redis.call_redis("rate_limits", partial(self._shared.count_request, counted))
        return await self._memory.count_request(counted)

    def _select_rules(self, principal: Principal | None, source: str, kind: RouteClass) -> "list[_RateLimitRule]":
        if principal is None:
            return [_RateLimitRule(f"api/source {source}", self._limits["api"], self._seconds)]
        of_user = _RateLimitRule(f"{kind}/user {principal.user}", self._limits[kind], self._seconds)
        limits = principal.limits
        if limits is None or limits.requests is None or principal.key is None:
            return [of_user]
        return [_RateLimitRule(f"key/{principal.key}", limits.requests, limits.window_seconds), of_user]

    async def acquire_stream_slot(self, principal: Principal | None, source: str) -> AbstractContextManager[None]:
        """One of the places that a key has for answers that last.

        Raises:
            TooManyStreams: all of them are taken.
        """
        if not self.enabled:
            return nullcontext()
        most, whose = self._max_streams, f"source {source}"
        if principal is not None:
            whose = f"{principal.key} {principal.user}"
            own = principal.limits.streams if principal.limits is not None else None
            most = most if own is None else min(most, own)
        return await self._stream_limiter.acquire_slot(whose, most)


class _RateLimitRule(msgspec.Struct, frozen=True):
    """A window that a request counts in: at most so many in any so many seconds."""

    owner: str
    limit: int
    seconds: int

    @property
    def key(self) -> str:
        """With other limits it is another window."""
        return f"{self.owner}/{self.limit}/{self.seconds}"


class _WindowCounter:
    """Several windows at once."""

    def __init__(self, storage: "InMemoryMovingWindow | RedisMovingWindow") -> None:
        self._storage = storage

    async def count_request(self, rules: list[_RateLimitRule]) -> RateLimitStatus:
        """How the fullest of them stands, after this. A request that one of them refuses counts in none."""
        for number, one in enumerate(rules):
            if not await self._storage.acquire_entry(one.key, one.limit, one.seconds):
                for taken in rules[:number]:
                    await self._storage.remove_newest_entry(taken.key)
                return await self._get_status(False, one)
        windows = [await self._get_status(True, one) for one in rules]
        return min(windows, key=lambda window: window.remaining)

    async def _get_status(self, allowed: bool, rule: _RateLimitRule) -> RateLimitStatus:
        start, number = await self._storage.get_moving_window(rule.key, rule.limit, rule.seconds)
        remaining = max(0, rule.limit - number) if allowed else 0
        return RateLimitStatus(allowed, rule.limit, remaining, start + rule.seconds, rule.seconds)


class InMemoryMovingWindow:
    """Moving windows of this process, with the interface of `limits`.

    The library's own take 1.5 MB, and search all of their keys in threads at every request. Beyond 100,000 keys, the
    one used longest ago is forgotten.
    """

    def __init__(self) -> None:
        self._windows: LruDict[str, deque[float]] = LruDict(_MAX_KEYS)

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        window = self._get_current_entries(key, expiry)
        if len(window) >= limit:
            return False
        window.append(time.time())
        return True

    async def remove_newest_entry(self, key: str) -> None:
        """Undo the newest `acquire_entry` of a key."""
        if window := self._windows.get(key):
            window.pop()

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        window = self._get_current_entries(key, expiry)
        return (window[0] if window else time.time(), len(window))

    def _get_current_entries(self, key: str, expiry: int) -> deque[float]:
        """The times of the requests of a key that still count, oldest first."""
        window = self._windows.setdefault(key, deque())
        while window and window[0] <= time.time() - expiry:
            window.popleft()
        return window
