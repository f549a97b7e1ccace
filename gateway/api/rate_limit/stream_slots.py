"""Limits on the open requests and running turns of a caller.

They hold per worker, or over all workers with Redis.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from gateway.common.concurrency import SupervisedTask, TaskSet, wait_or_poll
from gateway.common.redis import RedisUnavailable, SharedRedis
from gateway.domain.errors import TooManyStreams
from gateway.ports.turns import TurnSlot

_LEASE_SECONDS = 30.0
_POLL_SECONDS = 0.5
# Each slot is a sorted-set member scored by lease expiry; its holder renews it. A turn's slot keeps its name when
# another worker continues the turn, which thus takes it over.
_ACQUIRE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[3] * 1000))
return 1
"""
_RENEW_SCRIPT = """
local time = redis.call('TIME')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000 + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
"""


class StreamSlot(TurnSlot):
    """A caller's slot for one request or turn.

    Leaving the context releases it.
    """

    __slots__ = ("_limiter", "_owner", "_token")

    def __init__(self, limiter: "StreamLimiter", owner: str, token: str | None) -> None:
        self._limiter: StreamLimiter | None = limiter
        self._owner = owner
        self._token = token

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """See `TurnSlot.release`."""
        if self._limiter is not None:
            self._limiter.return_slot(self._owner, self._token)
            self._limiter = None


class _Lease(NamedTuple):
    """A slot in Redis, named in the set of its owner."""

    owner: str
    name: str


class StreamLimiter:
    """Counts open requests or running turns by caller.

    With Redis each slot is also a lease of `lease_seconds`, renewed every `renew_seconds` (by default a third of that)
    while the slot is held: the slots of a worker that was killed become free when their leases expire.
    """

    def __init__(
        self,
        redis: SharedRedis | None,
        *,
        lease_seconds: float = _LEASE_SECONDS,
        renew_seconds: float | None = None,
    ) -> None:
        self._renew_seconds = lease_seconds / 3 if renew_seconds is None else renew_seconds
        self._local_counts: Counter[str] = Counter()
        self._redis = redis
        self._lease_seconds = lease_seconds
        self._leases: dict[str, _Lease] = {}
        self._slot_released = asyncio.Event()
        self._has_leases = asyncio.Event()
        self._renewal = SupervisedTask("stream lease renewal", self._renew_leases)
        self._releases = TaskSet("stream lease release")
        if redis is not None:
            self._acquire_script = redis.client.register_script(_ACQUIRE_SCRIPT)
            self._renew_script = redis.client.register_script(_RENEW_SCRIPT)

    async def close(self) -> None:
        """Stop renewing, and wait until Redis knows of all released slots."""
        await self._renewal.stop()
        await self._releases.stop(None)

    async def acquire_slot(self, owner: str, limit: int, *, name: str | None = None) -> StreamSlot:
        """Take one of the `limit` slots of a caller.

        A slot with the `name` of one that another worker holds replaces it.

        Raises:
            TooManyStreams: all slots are taken.
        """
        if self._local_counts[owner] >= limit:
            raise _make_too_many_streams(limit)
        self._local_counts[owner] += 1
        try:
            token = None if self._redis is None else await self._acquire_lease(owner, limit, name or uuid4().hex)
        except BaseException:
            self._decrement_local_count(owner)
            raise
        return StreamSlot(self, owner, token)

    async def wait_for_slot(self, owner: str, limit: int, *, name: str) -> StreamSlot:
        """Take a slot of a caller as soon as one is free."""
        while True:
            self._slot_released.clear()
            try:
                return await self.acquire_slot(owner, limit, name=name)
            except TooManyStreams:
                await wait_or_poll(self._slot_released, _POLL_SECONDS)

    def return_slot(self, owner: str, token: str | None) -> None:
        """Free a slot, as `StreamSlot.release` does once."""
        self._decrement_local_count(owner)
        self._slot_released.set()
        if token is not None:
            lease = self._leases.pop(token)
            if lease not in self._leases.values():
                self._releases.spawn(self._remove_leases(owner, lease.name))

    def _decrement_local_count(self, owner: str) -> None:
        self._local_counts[owner] -= 1
        if not self._local_counts[owner]:
            del self._local_counts[owner]

    async def _acquire_lease(self, owner: str, limit: int, name: str) -> str | None:
        """Acquire a lease and return its key in `_leases`.

        Return None while Redis is unavailable, when this worker counts alone.

        Raises:
            TooManyStreams: the caller has `limit` leases at all workers together.
        """
        acquire = partial(self._acquire_script, keys=[_make_redis_key(owner)], args=[limit, name, self._lease_seconds])
        acquired = await self._call_redis(acquire)
        if acquired is None:
            return None
        if not acquired:
            raise _make_too_many_streams(limit)
        token = uuid4().hex
        self._leases[token] = _Lease(owner, name)
        self._has_leases.set()
        self._renewal.start()
        return token

    async def _renew_leases(self) -> None:
        """Renew all leases, while there are any."""
        while True:
            if not self._leases:
                self._has_leases.clear()
                await self._has_leases.wait()
            await asyncio.sleep(self._renew_seconds)
            names_by_owner: dict[str, list[str]] = {}
            for lease in self._leases.values():
                names_by_owner.setdefault(lease.owner, []).append(lease.name)
            for owner, names in names_by_owner.items():
                keys, arguments = [_make_redis_key(owner)], [self._lease_seconds, *names]
                await self._call_redis(partial(self._renew_script, keys=keys, args=arguments))
                held = set(self._leases.values())
                if released := [name for name in names if _Lease(owner, name) not in held]:
                    await self._remove_leases(owner, *released)  # the renewal may have run after their release

    async def _remove_leases(self, owner: str, *names: str) -> None:
        assert self._redis is not None
        await self._call_redis(partial(self._redis.client.zrem, _make_redis_key(owner), *names), ignore_backoff=True)

    async def _call_redis(self, operation: Callable[[], Awaitable[int]], *, ignore_backoff: bool = False) -> int | None:
        assert self._redis is not None
        try:
            return await self._redis.call_redis("stream_limits", operation, ignore_backoff=ignore_backoff)
        except RedisUnavailable:
            return None


def _make_redis_key(owner: str) -> str:
    return f"agent_gateway:places:{owner}"


def _make_too_many_streams(limit: int) -> TooManyStreams:
    return TooManyStreams(f"At most {limit} of your requests or turns may run at once.", retry_after=1)
