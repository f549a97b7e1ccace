"""Rate-limit windows in Redis, which all workers share.

Imported only if REDIS_URL is set.
"""

from limits.aio.storage import RedisStorage
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.common.redis import SharedRedis


def connect_to_redis(url: str, *, timeout_seconds: float, backoff_seconds: float) -> SharedRedis:
    """Create a client with short timeouts and its own connections."""
    pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 1)
    )
    return SharedRedis(Redis.from_pool(pool), timeout_seconds=timeout_seconds, backoff_seconds=backoff_seconds)


class RedisMovingWindow(RedisStorage):
    """The moving windows of `limits` in Redis.

    It also has the means to undo an entry.
    """

    def __init__(self, client: Redis) -> None:
        options = {"connection_pool": client.connection_pool, "key_prefix": "agent_gateway", "wrap_exceptions": True}
        super().__init__("async+redis://", implementation="redispy", **options)  # pyright: ignore[reportArgumentType]
        self._client = client

    async def remove_newest_entry(self, key: str) -> None:
        """Undo the newest `acquire_entry` of a key."""
        await self._client.lpop(self.bridge.prefixed_key(key))  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
