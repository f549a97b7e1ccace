"""Which turn's answer may be given again. The answers stay where they are, in the turns, and go with them."""

from typing import Any
from uuid import UUID

import msgspec
from sqlmodel import text

from gateway.domain.messages import CachedAnswer, Message
from gateway.ports.store import ResponseCache
from gateway.store.database import Database, decode_json

_FIND = """
SELECT turns.messages, turns.sent_messages, turns.finish_reason
FROM cached_responses AS known JOIN turns ON turns.id = known.turn_id
WHERE known.owner = :owner AND known.key = :key AND turns.status = 'completed'
      AND known.expires_at > now() AND known.kept_at > now() - make_interval(secs => :ttl)
"""
_KEEP = """
INSERT INTO cached_responses (owner, key, turn_id, kept_at, expires_at)
SELECT owner, :key, id, now(), now() + make_interval(secs => :ttl) FROM turns WHERE id = :turn_id FOR KEY SHARE
ON CONFLICT (owner, key)
DO UPDATE SET turn_id = excluded.turn_id, kept_at = excluded.kept_at, expires_at = excluded.expires_at
"""
# Two who make room at the same time leave each other's rows alone.
_MAKE_ROOM = """
DELETE FROM cached_responses WHERE (owner, key) IN (
    SELECT owner, key FROM cached_responses {of_owner} ORDER BY kept_at DESC OFFSET :most FOR UPDATE SKIP LOCKED)
"""
_EXPIRE = """
DELETE FROM cached_responses WHERE (owner, key) IN (
    SELECT owner, key FROM cached_responses WHERE expires_at <= now() LIMIT 10000 FOR UPDATE SKIP LOCKED)
"""
_SWEEP_EVERY = 64


class ResponseCacheStore(ResponseCache):
    """See `ResponseCache` of the agent. At most so many answers an owner, and in all."""

    def __init__(self, database: Database, *, max_per_owner: int = 1_000, max_total: int = 100_000) -> None:
        self._database = database
        self._most_of_owner = max_per_owner
        self._most = max_total
        self._kept = 0

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
        room: list[tuple[str, dict[str, Any]]] = [
            (_MAKE_ROOM.format(of_owner="WHERE owner = :owner"), {"owner": owner, "most": self._most_of_owner})
        ]
        if self._kept % _SWEEP_EVERY == 0:
            room += [(_EXPIRE, {}), (_MAKE_ROOM.format(of_owner=""), {"most": self._most})]
        self._kept += 1
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(text(_KEEP), {"key": key, "turn_id": turn_id, "ttl": ttl})
            for statement, values in room:
                await connection.execute(text(statement), values)
