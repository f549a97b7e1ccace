"""Windows in Redis, which all workers count together. Imported only where there is one."""

from limits.aio.storage import RedisStorage
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.common.redis import TIMEOUT_SECONDS, SharedRedis


def connect_to_redis(url: str) -> SharedRedis:
    """A client that gives up soon, with connections of its own."""
    pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 1)
    )
    return SharedRedis(Redis.from_pool(pool))


class RedisMovingWindow(RedisStorage):
    """Windows in Redis."""

    def __init__(self, client: Redis) -> None:
        options = {"connection_pool": client.connection_pool, "key_prefix": "agent_gateway", "wrap_exceptions": True}
        super().__init__("async+redis://", implementation="redispy", **options)  # pyright: ignore[reportArgumentType]
        self._client = client

    async def remove_newest_entry(self, key: str) -> None:
        """Undo the newest `acquire_entry` of a key."""
        await self._client.lpop(self.bridge.prefixed_key(key))  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
