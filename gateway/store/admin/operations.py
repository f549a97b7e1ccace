"""Open turns of all users, and workers, for administrators."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from gateway.domain.errors import NotFound
from gateway.store.database import Database, DatabaseRow

# Both branches have a small partial index; a condition on the status alone would read all turns.
_OPEN_TURNS = """
WITH open AS (
    SELECT id FROM turns WHERE status = 'running'
    UNION SELECT turn_id FROM turn_inputs WHERE answer IS NULL AND expires_at > now()
)
SELECT turn.id, turn.owner, turn.model_name, turn.status, turn.steps, turn.created_at, turn.worker_id,
       turn.conversation_id, turn.cancel_requested,
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'id', asked.id, 'kind', asked.question->>'kind', 'server', called.server, 'tool', called.tool,
                   'created_at', asked.created_at, 'expires_at', asked.expires_at) ORDER BY asked.id), '[]')::text
        FROM turn_inputs AS asked
        LEFT JOIN tool_calls AS called ON called.turn_id = asked.turn_id AND called.call_id = asked.call_id
        WHERE asked.turn_id = turn.id AND asked.answer IS NULL AND turn.status = 'waiting') AS questions
FROM open JOIN turns AS turn ON turn.id = open.id
WHERE turn.status IN ('running', 'waiting') AND (cast(:before AS uuid) IS NULL OR turn.id < cast(:before AS uuid))
ORDER BY turn.id DESC LIMIT :limit
"""
_WORKERS = """
SELECT worker.id, worker.host, worker.pid, worker.started_at, worker.seen_at,
       coalesce(worker.lease_until > now(), false) AS has_lease,
       (SELECT count(*) FROM turns WHERE turns.worker_id = worker.id AND turns.status = 'running') AS running_turns
FROM workers AS worker ORDER BY worker.started_at, worker.id LIMIT 1000
"""


class OpenQuestion(msgspec.Struct, frozen=True):
    """A question that a turn waits for, without its text."""

    id: UUID
    kind: str
    server: str | None
    tool: str | None
    created_at: datetime
    expires_at: datetime


class OpenTurn(msgspec.Struct, frozen=True):
    """A turn that runs, or waits for a person."""

    id: UUID
    owner: str
    model: str
    status: str
    steps: int
    created_at: datetime
    worker_id: UUID | None
    conversation_id: UUID | None
    cancel_requested: bool
    questions: tuple[OpenQuestion, ...]


class OperationsStore:
    """Reads what runs at the moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_open_turns(self, *, limit: int, before: UUID | None = None) -> list[OpenTurn]:
        """List the turns of all users that have not ended, newest first."""
        rows = await self._database.fetch_rows(_OPEN_TURNS, limit=limit, before=before)
        return [
            OpenTurn(*tuple[Any, ...](row)[:-1], questions=msgspec.json.decode(row[-1], type=tuple[OpenQuestion, ...]))
            for row in rows
        ]

    async def get_owner(self, turn_id: UUID) -> str:
        """Return the owner of a turn.

        Raises:
            NotFound: there is no such turn.
        """
        rows = await self._database.fetch_rows("SELECT owner FROM turns WHERE id = :id", id=turn_id)
        if not rows:
            raise NotFound(f"There is no turn {str(turn_id)!r}.")
        return rows[0][0]

    async def list_workers(self) -> Sequence[DatabaseRow]:
        """List the registered workers, the oldest first."""
        return await self._database.fetch_rows(_WORKERS)
