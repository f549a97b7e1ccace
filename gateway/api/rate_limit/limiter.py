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
from uuid import UUID

import msgspec

from gateway.api.rate_limit.stream_slots import StreamLimiter
from gateway.api.security.permissions import RouteClass
from gateway.common.concurrency import LruDict
from gateway.common.redis import BACKOFF_SECONDS, RedisUnavailable, SharedRedis
from gateway.config import Settings
from gateway.domain.errors import RateLimited
from gateway.domain.messages import Principal
from gateway.ports.turns import TurnSlot, TurnSlots

if TYPE_CHECKING:
    from gateway.api.rate_limit.redis_windows import RedisMovingWindow

_MAX_KEYS = 100_000
RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_LIMIT_HEADER, _REMAINING_HEADER, _RESET_HEADER = (name.lower().encode() for name in RATE_HEADERS)


class RateLimitStatus(msgspec.Struct, frozen=True):
    """The state of a caller's window.

    `reset_at` is the Unix time when its oldest request no longer counts.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_at: float
    window_seconds: int

    def to_headers(self) -> list[tuple[bytes, bytes]]:
        """Build the headers of a response, as ASGI wants them."""
        return [
            (_LIMIT_HEADER, b"%d" % self.limit),
            (_REMAINING_HEADER, b"%d" % self.remaining),
            (_RESET_HEADER, b"%d" % math.ceil(self.reset_at)),
        ]

    def to_error(self) -> RateLimited:
        """Build the error for a request that is not allowed."""
        seconds = max(1, math.ceil(self.reset_at - time.time()))
        return RateLimited(
            f"At most {self.limit} requests in {self.window_seconds} seconds. Try again in {seconds} seconds.",
            retry_after=seconds,
        )


class RateLimiter(TurnSlots):
    """Counts requests and running turns.

    With Redis, it counts over all workers; without it or while it is unavailable, per worker.
    """

    def __init__(self, settings: Settings, *, redis_backoff_seconds: float = BACKOFF_SECONDS) -> None:
        self._limits = {
            route_class: limit or settings.rate_limit_requests
            for route_class, limit in {
                "api": None,
                "chat": settings.rate_limit_chat_requests,
                "tools": settings.rate_limit_tools_requests,
                "mcp": settings.rate_limit_mcp_requests,
            }.items()
        }
        self._window_seconds = settings.rate_limit_window_seconds
        self.enabled = settings.rate_limit_enabled
        self._local_counter = _WindowCounter(InMemoryMovingWindow())
        self._redis: SharedRedis | None = None
        self._shared_counter: _WindowCounter | None = None
        self._max_streams = settings.rate_limit_streams
        if settings.redis_url is not None and self.enabled:
            from gateway.api.rate_limit import redis_windows

            self._redis = redis_windows.connect_to_redis(
                settings.redis_url.get_secret_value(),
                timeout_seconds=settings.redis_timeout_seconds,
                backoff_seconds=redis_backoff_seconds,
            )
            self._shared_counter = _WindowCounter(redis_windows.RedisMovingWindow(self._redis.client))
        self._stream_limiter = StreamLimiter(self._redis)

    async def close(self) -> None:
        """Release the stream slots and close the connections to Redis."""
        await self._stream_limiter.close()
        if self._redis is not None:
            await self._redis.client.aclose()

    async def check_request(self, principal: Principal | None, source: str, route_class: RouteClass) -> RateLimitStatus:
        """Count a request of a principal; without one, of the source address.

        It counts in the window of the user and route class, and in the key's own window, if any. A request that exceeds
        one of them counts in none. While Redis is unavailable, this worker counts alone.
        """
        rules = self._select_rules(principal, source, route_class)
        if self._redis is not None and self._shared_counter is not None:
            with suppress(RedisUnavailable):
                return await self._redis.call_redis("rate_limits", partial(self._shared_counter.count_request, rules))
        return await self._local_counter.count_request(rules)

    def _select_rules(
        self, principal: Principal | None, source: str, route_class: RouteClass
    ) -> "list[_RateLimitRule]":
        seconds = self._window_seconds
        if principal is None:
            return [_RateLimitRule(f"api/source {source}", self._limits["api"], seconds)]
        user_rule = _RateLimitRule(f"{route_class}/user {principal.user}", self._limits[route_class], seconds)
        limits = principal.limits
        if limits is None or limits.requests is None or principal.key is None:
            return [user_rule]
        return [_RateLimitRule(f"key/{principal.key}", limits.requests, limits.window_seconds), user_rule]

    async def acquire_stream_slot(self, principal: Principal | None, source: str) -> AbstractContextManager[None]:
        """Acquire one of the caller's slots for open requests.

        Leaving the context releases it.

        Raises:
            TooManyStreams: all slots are taken.
        """
        if not self.enabled:
            return nullcontext()
        if principal is None:
            return await self._stream_limiter.acquire_slot(f"source {source}", self._max_streams)
        return await self._stream_limiter.acquire_slot(
            f"{principal.key} {principal.user}", self._get_stream_limit(principal)
        )

    async def acquire_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """See `TurnSlots.acquire_turn_slot`."""
        if not self.enabled:
            return None
        limit = self._get_stream_limit(principal)
        return await self._stream_limiter.acquire_slot(_make_turn_owner(principal), limit, name=turn_id.hex)

    async def wait_for_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """See `TurnSlots.wait_for_turn_slot`."""
        if not self.enabled:
            return None
        limit = self._get_stream_limit(principal)
        return await self._stream_limiter.wait_for_slot(_make_turn_owner(principal), limit, name=turn_id.hex)

    def _get_stream_limit(self, principal: Principal) -> int:
        key_limit = principal.limits.streams if principal.limits is not None else None
        return self._max_streams if key_limit is None else min(self._max_streams, key_limit)


def _make_turn_owner(principal: Principal) -> str:
    """Name the owner of turn slots.

    Without authentication, a caller could choose another user for each turn, so all of them are one owner.
    """
    return "turns anonymous" if principal.key is None else f"turns {principal.key} {principal.user}"


class _RateLimitRule(msgspec.Struct, frozen=True):
    """At most `limit` requests of `owner` in any `seconds`."""

    owner: str
    limit: int
    seconds: int

    @property
    def key(self) -> str:
        """Key of the window; a changed limit starts a new window."""
        return f"{self.owner}/{self.limit}/{self.seconds}"


class _WindowCounter:
    """Counts a request in several windows at once."""

    def __init__(self, storage: "InMemoryMovingWindow | RedisMovingWindow") -> None:
        self._storage = storage

    async def count_request(self, rules: list[_RateLimitRule]) -> RateLimitStatus:
        """Count a request; return the status of the fullest window.

        A request that one rule rejects counts in none.
        """
        for index, rule in enumerate(rules):
            if not await self._storage.acquire_entry(rule.key, rule.limit, rule.seconds):
                for counted_rule in rules[:index]:
                    await self._storage.remove_newest_entry(counted_rule.key)
                return await self._get_status(rule, allowed=False)
        statuses = [await self._get_status(rule, allowed=True) for rule in rules]
        return min(statuses, key=lambda status: status.remaining)

    async def _get_status(self, rule: _RateLimitRule, *, allowed: bool) -> RateLimitStatus:
        start, count = await self._storage.get_moving_window(rule.key, rule.limit, rule.seconds)
        remaining = max(0, rule.limit - count) if allowed else 0
        return RateLimitStatus(allowed, rule.limit, remaining, start + rule.seconds, rule.seconds)


class InMemoryMovingWindow:
    """Moving windows of this process, with the interface of `limits`.

    The library's own memory storage searches all keys in threads at every request. Beyond `_MAX_KEYS` keys, the least
    recently used window is forgotten.
    """

    def __init__(self) -> None:
        self._windows: LruDict[str, deque[float]] = LruDict(_MAX_KEYS)

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        """Count a request unless `limit` counted within `expiry` seconds.

        Return whether it counts.
        """
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
        """Return the state of a key's moving window.

        The first value is the Unix time of the oldest request that counts, the second the number of those requests.
        """
        window = self._get_current_entries(key, expiry)
        return (window[0] if window else time.time(), len(window))

    def _get_current_entries(self, key: str, expiry: int) -> deque[float]:
        """List the Unix times of a key's requests that count.

        The oldest is first.
        """
        window = self._windows.setdefault(key, deque())
        while window and window[0] <= time.time() - expiry:
            window.popleft()
        return window
