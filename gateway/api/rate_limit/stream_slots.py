"""How many answers that last a caller may have open at once: at this worker, or, with Redis, at all of them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from gateway.common.redis import RedisAway, SharedRedis
from gateway.domain.errors import TooManyStreams

_LEASE = 30.0
# A place is a member of its caller's sorted set until its time is over, which is put off while it is in use.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[3] * 1000))
return 1
"""
_KEEP = """
local time = redis.call('TIME')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000 + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
"""


class Place:
    """Give it back by leaving its `with`."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._give_back()


class Places:
    """Counts what is open. A worker that is killed gives its places back when their lease is over."""

    def __init__(self, redis: SharedRedis | None, *, lease: float = _LEASE) -> None:
        self._here: Counter[str] = Counter()
        self._redis = redis
        self._lease = lease
        self._leased: dict[str, str] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._giving: set[asyncio.Task[None]] = set()
        if redis is not None:
            self._take, self._keep = redis.client.register_script(_TAKE), redis.client.register_script(_KEEP)

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await asyncio.gather(*self._giving, *filter(None, [self._keeping]), return_exceptions=True)

    async def take(self, whose: str, most: int) -> Place:
        """One of so many places, held from now on.

        Raises:
            TooManyStreams: all of them are taken.
        """
        if self._here[whose] >= most:
            raise _refusal(most)
        self._here[whose] += 1
        try:
            name = await self._lease_one(whose, most) if self._redis is not None else None
        except BaseException:
            self._leave(whose)
            raise
        return Place(partial(self._give_back, whose, name))

    def _give_back(self, whose: str, name: str | None) -> None:
        self._leave(whose)
        if name is not None:
            task = asyncio.create_task(self._remove(self._leased.pop(name), name))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    def _leave(self, whose: str) -> None:
        self._here[whose] -= 1
        if not self._here[whose]:
            del self._here[whose]

    async def _lease_one(self, whose: str, most: int) -> str | None:
        """The place's name; None: Redis is away, and this worker counts alone."""
        name = uuid4().hex
        free = await self._unless_away(partial(self._take, keys=[_key(whose)], args=[most, name, self._lease]))
        if free is None:
            return None
        if not free:
            raise _refusal(most)
        self._leased[name] = whose
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep_all(), name="places")
        return name

    async def _keep_all(self) -> None:
        """Renew the leases, as long as there are any."""
        while self._leased:
            await asyncio.sleep(self._lease / 3)
            names: dict[str, list[str]] = {}
            for name, whose in self._leased.items():
                names.setdefault(whose, []).append(name)
            for whose, of_one in names.items():
                await self._unless_away(partial(self._keep, keys=[_key(whose)], args=[self._lease, *of_one]))
                if gone := [name for name in of_one if name not in self._leased]:
                    await self._remove(whose, *gone)  # it may have been renewed just after it was given back

    async def _remove(self, whose: str, *names: str) -> None:
        assert self._redis is not None
        await self._unless_away(partial(self._redis.client.zrem, _key(whose), *names), in_pause=True)

    async def _unless_away(self, asking: Callable[[], Awaitable[int]], *, in_pause: bool = False) -> int | None:
        assert self._redis is not None
        try:
            return await self._redis.ask("places", asking, in_pause=in_pause)
        except RedisAway:
            return None


def _key(whose: str) -> str:
    return f"agent_gateway:places:{whose}"


def _refusal(most: int) -> TooManyStreams:
    return TooManyStreams(f"At most {most} of your requests may run at once.", retry_after=1)
