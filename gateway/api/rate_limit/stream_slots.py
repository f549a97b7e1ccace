"""How many answers that last a caller may have open at once: at this worker, or, with Redis, at all of them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from gateway.common.redis import RedisUnavailable, SharedRedis
from gateway.domain.errors import TooManyStreams

_LEASE_SECONDS = 30.0
# A place is a member of its caller's sorted set until its time is over, which is put off while it is in use.
_ACQUIRE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[3] * 1000))
return 1
"""
_RENEW_SCRIPT = """
local time = redis.call('TIME')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000 + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
"""


class StreamSlot:
    """Give it back by leaving its `with`."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._release()


class StreamLimiter:
    """Counts what is open. A worker that is killed gives its places back when their lease is over."""

    def __init__(self, redis: SharedRedis | None, *, lease_seconds: float = _LEASE_SECONDS) -> None:
        self._local_counts: Counter[str] = Counter()
        self._redis = redis
        self._lease_seconds = lease_seconds
        self._owner_by_lease: dict[str, str] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._giving: set[asyncio.Task[None]] = set()
        if redis is not None:
            self._acquire_script, self._renew_script = (
                redis.client.register_script(_ACQUIRE_SCRIPT),
                redis.client.register_script(_RENEW_SCRIPT),
            )

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await asyncio.gather(*self._giving, *filter(None, [self._keeping]), return_exceptions=True)

    async def acquire_slot(self, owner: str, limit: int) -> StreamSlot:
        """One of so many places, held from now on.

        Raises:
            TooManyStreams: all of them are taken.
        """
        if self._local_counts[owner] >= limit:
            raise _make_too_many_streams(limit)
        self._local_counts[owner] += 1
        try:
            name = await self._acquire_lease(owner, limit) if self._redis is not None else None
        except BaseException:
            self._decrement_local_count(owner)
            raise
        return StreamSlot(partial(self._release_slot, owner, name))

    def _release_slot(self, owner: str, name: str | None) -> None:
        self._decrement_local_count(owner)
        if name is not None:
            task = asyncio.create_task(self._remove_leases(self._owner_by_lease.pop(name), name))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    def _decrement_local_count(self, owner: str) -> None:
        self._local_counts[owner] -= 1
        if not self._local_counts[owner]:
            del self._local_counts[owner]

    async def _acquire_lease(self, owner: str, limit: int) -> str | None:
        """The place's name; None: Redis is away, and this worker counts alone."""
        name = uuid4().hex
        free = await self._call_redis(
            partial(self._acquire_script, keys=[_make_redis_key(owner)], args=[limit, name, self._lease_seconds])
        )
        if free is None:
            return None
        if not free:
            raise _make_too_many_streams(limit)
        self._owner_by_lease[name] = owner
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._renew_leases(), name="places")
        return name

    async def _renew_leases(self) -> None:
        """Renew the leases, as long as there are any."""
        while self._owner_by_lease:
            await asyncio.sleep(self._lease_seconds / 3)
            names: dict[str, list[str]] = {}
            for name, whose in self._owner_by_lease.items():
                names.setdefault(whose, []).append(name)
            for whose, of_one in names.items():
                await self._call_redis(
                    partial(self._renew_script, keys=[_make_redis_key(whose)], args=[self._lease_seconds, *of_one])
                )
                if gone := [name for name in of_one if name not in self._owner_by_lease]:
                    await self._remove_leases(whose, *gone)  # it may have been renewed just after it was given back

    async def _remove_leases(self, owner: str, *names: str) -> None:
        assert self._redis is not None
        await self._call_redis(partial(self._redis.client.zrem, _make_redis_key(owner), *names), in_pause=True)

    async def _call_redis(self, asking: Callable[[], Awaitable[int]], *, in_pause: bool = False) -> int | None:
        assert self._redis is not None
        try:
            return await self._redis.call_redis("places", asking, ignore_backoff=in_pause)
        except RedisUnavailable:
            return None


def _make_redis_key(owner: str) -> str:
    return f"agent_gateway:places:{owner}"


def _make_too_many_streams(limit: int) -> TooManyStreams:
    return TooManyStreams(f"At most {limit} of your requests may run at once.", retry_after=1)
