"""The response cache: references to turns whose answers may be reused.

A deleted turn leaves the cache.
"""

from collections.abc import Mapping
from uuid import UUID

import msgspec
from sqlmodel import text

from gateway.domain.cached_answer import CachedAnswer
from gateway.domain.messages import Message
from gateway.ports.store import ResponseCache
from gateway.store.database import Database, decode_json

_FIND = """
SELECT turns.messages, turns.sent_messages, turns.finish_reason
FROM cached_responses AS cached JOIN turns ON turns.id = cached.turn_id
WHERE cached.owner = :owner AND cached.key = :key AND turns.status = 'completed'
      AND cached.expires_at > now() AND cached.kept_at > now() - make_interval(secs => :ttl)
"""
_SAVE = """
INSERT INTO cached_responses (owner, key, turn_id, kept_at, expires_at)
SELECT owner, :key, id, now(), now() + make_interval(secs => :ttl) FROM turns WHERE id = :turn_id FOR KEY SHARE
ON CONFLICT (owner, key)
DO UPDATE SET turn_id = excluded.turn_id, kept_at = excluded.kept_at, expires_at = excluded.expires_at
"""
# Concurrent evictions skip each other's rows.
_EVICT = """
DELETE FROM cached_responses WHERE (owner, key) IN (
    SELECT owner, key FROM cached_responses {of_owner} ORDER BY kept_at DESC OFFSET :max_rows FOR UPDATE SKIP LOCKED)
"""
_EXPIRE = """
DELETE FROM cached_responses WHERE (owner, key) IN (
    SELECT owner, key FROM cached_responses WHERE expires_at <= now() LIMIT 10000 FOR UPDATE SKIP LOCKED)
"""
_SAVES_PER_SWEEP = 64


class ResponseCacheStore(ResponseCache):
    """See `ResponseCache`.

    The cache holds at most `max_per_owner` answers per owner and `max_total` in all.
    """

    def __init__(self, database: Database, *, max_per_owner: int = 1_000, max_total: int = 100_000) -> None:
        self._database = database
        self._max_per_owner = max_per_owner
        self._max_total = max_total
        self._save_count = 0

    async def find_answer(self, owner: str, key: bytes, ttl: float) -> CachedAnswer | None:
        """See `ResponseCache.find_answer`."""
        rows = await self._database.fetch_rows(_FIND, owner=owner, key=key, ttl=ttl)
        if not rows:
            return None
        messages, sent, finish_reason = rows[0]
        added = msgspec.convert(decode_json(messages), tuple[Message, ...])[sent:]
        texts = tuple(message.text for message in added if message.role == "assistant" and message.text)
        return CachedAnswer(texts, str(finish_reason)) if texts else None

    async def save_answer(self, owner: str, key: bytes, turn_id: UUID, ttl: float) -> None:
        """See `ResponseCache.save_answer`."""
        evictions: list[tuple[str, Mapping[str, object]]] = [
            (_EVICT.format(of_owner="WHERE owner = :owner"), {"owner": owner, "max_rows": self._max_per_owner})
        ]
        if self._save_count % _SAVES_PER_SWEEP == 0:
            evictions += [(_EXPIRE, {}), (_EVICT.format(of_owner=""), {"max_rows": self._max_total})]
        self._save_count += 1
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(text(_SAVE), {"key": key, "turn_id": turn_id, "ttl": ttl})
            for statement, values in evictions:
                await connection.execute(text(statement), values)
