"""The queue of webhook messages.

Triggers of `turns` and `turn_inputs` add the messages, in the transaction of the change that they tell of.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from gateway.domain.messages import Principal
from gateway.ports.webhooks import WebhookMessage, WebhookQueue
from gateway.store.database import Database
from gateway.store.encryption import Cipher
from gateway.store.webhooks.push_configs import open_config

_CLAIM = """
UPDATE webhook_messages SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => :seconds)
WHERE id IN (SELECT id FROM webhook_messages WHERE next_attempt_at <= now()
             ORDER BY next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING id, url, payload, attempts,
    (SELECT sealed FROM push_configs AS p WHERE p.turn_id = webhook_messages.turn_id AND p.id = push_id)"""
# The number of claims is the fence: it has changed if another worker has claimed the message.
_DELIVERED = """
UPDATE webhook_messages SET delivered_at = now(), next_attempt_at = NULL, error = NULL
WHERE id = :id AND attempts = :attempts AND next_attempt_at IS NOT NULL RETURNING id"""
_FAILED = """
UPDATE webhook_messages SET error = :error, next_attempt_at = now() + make_interval(secs => :seconds),
    failed_at = CASE WHEN cast(:seconds AS float8) IS NULL THEN now() END
WHERE id = :id AND attempts = :attempts AND next_attempt_at IS NOT NULL RETURNING id"""
_DELETE_OLD = """
DELETE FROM webhook_messages WHERE id IN (
    SELECT id FROM webhook_messages WHERE next_attempt_at IS NULL
    AND coalesce(delivered_at, failed_at) < now() - make_interval(secs => :seconds)
    LIMIT 1000 FOR UPDATE SKIP LOCKED)
RETURNING id"""
_LIST_FAILED = """
SELECT id, turn_id, event, url, attempts, error, created_at, failed_at FROM webhook_messages
WHERE failed_at IS NOT NULL AND owner = :owner
AND (cast(:key AS text) IS NULL OR EXISTS (
    SELECT FROM turns WHERE turns.id = turn_id AND turns.caller->>'key' = :key))
ORDER BY failed_at DESC, id LIMIT :limit"""


class FailedMessage(NamedTuple):
    """Message that could not be delivered."""

    id: UUID
    turn_id: UUID
    event: str
    url: str
    attempts: int
    error: str
    created_at: datetime
    failed_at: datetime


class WebhookStore(WebhookQueue):
    """See `WebhookQueue`."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def claim(self, limit: int, *, seconds: float) -> list[WebhookMessage]:
        rows = await self._database.fetch_rows(_CLAIM, limit=limit, seconds=seconds)
        return [WebhookMessage(*row[:4], headers=self._open_headers(row[4])) for row in rows]

    def _open_headers(self, sealed: bytes | None) -> dict[str, str]:
        config = None if sealed is None else open_config(self._cipher, sealed)
        return {} if config is None else config.headers

    async def mark_delivered(self, message: WebhookMessage) -> None:
        await self._database.fetch_rows(_DELIVERED, id=message.id, attempts=message.attempts)

    async def mark_failed(self, message: WebhookMessage, error: str, *, retry_seconds: float | None) -> None:
        await self._database.fetch_rows(
            _FAILED, id=message.id, attempts=message.attempts, error=error[:500], seconds=retry_seconds
        )

    async def delete_old(self, days: float) -> None:
        await self._database.fetch_rows(_DELETE_OLD, seconds=days * 86_400.0)

    async def list_failed(self, principal: Principal, key: str | None, limit: int) -> list[FailedMessage]:
        """List the undelivered messages of a user, newest first."""
        rows = await self._database.fetch_rows(_LIST_FAILED, owner=principal.user, key=key, limit=limit)
        return [FailedMessage(*row) for row in rows]
