"""Leases of workers, and the turns that they own."""

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
from sqlalchemy import ARRAY, Uuid, bindparam, text

from gateway.domain.errors import ErrorInfo, TurnTakenOver
from gateway.domain.events import TAKEOVER_JUMP, TurnFailed, encode_event
from gateway.domain.messages import MAX_ATTEMPTS, TurnClaim
from gateway.ports.store import WorkerRepository
from gateway.store.database import Database, encode_jsonb
from gateway.store.errors import raise_gateway_errors
from gateway.store.journal.statements import FENCE, INSERT_USAGE

MAX_CLAIMS = 100

_RENEW = """
UPDATE workers SET seen_at = now(), lease_until = now() + make_interval(secs => $2::float8) WHERE id = $1
RETURNING $2::float8"""
# Turns that are not stored cannot continue elsewhere: they still run here.
_RELEASE_LOST = """
UPDATE turns SET worker_id = NULL, attempts = attempts + 1
WHERE worker_id = $1 AND status = 'running' AND options->>'store' IS DISTINCT FROM 'false'"""
_REGISTER = """
INSERT INTO workers (id, host, pid, lease_until) VALUES ($1, $2, $3, now() + make_interval(secs => $4::float8))
ON CONFLICT (id) DO UPDATE SET seen_at = now(), lease_until = excluded.lease_until"""

_DEAD = (
    "id <> :worker_id AND (lease_until < now() OR lease_until IS NULL AND seen_at < now() - CAST(:silence AS interval))"
)
_WITHOUT_WORKER = (
    "NOT waits_for_task AND (worker_id IS NULL OR NOT EXISTS (SELECT FROM workers WHERE workers.id = turns.worker_id))"
)
_IDS = bindparam("ids", type_=ARRAY(Uuid))
# Most looks find nothing. They must hold no lock: a worker that is cut off then would delay the claim of its turns.
_HAS_CLAIMABLE = f"""
SELECT EXISTS (SELECT FROM workers WHERE {_DEAD})
    OR EXISTS (SELECT FROM turns WHERE status = 'running' AND {_WITHOUT_WORKER})"""
_LOCK_OWN_LEASE = text("SELECT id FROM workers WHERE id = :worker_id AND lease_until > now() FOR KEY SHARE")
_DELETE_DEAD_WORKERS = text(
    f"DELETE FROM workers WHERE id IN (SELECT id FROM workers WHERE {_DEAD} FOR UPDATE SKIP LOCKED)"
)
_LAST_ATTEMPT = MAX_ATTEMPTS - 1
_NEXT_ATTEMPT = "attempts + (worker_id IS NOT NULL)::int"
_LOCK_ORPHANS = text(f"""
SELECT id FROM turns WHERE status = 'running' AND {_WITHOUT_WORKER} AND {_NEXT_ATTEMPT} <> {_LAST_ATTEMPT}
LIMIT {MAX_CLAIMS} FOR NO KEY UPDATE SKIP LOCKED""")
# A turn that kills its workers has died as often as the turns beside it. Alone, only its own attempts go on.
_LOCK_LAST_ATTEMPT = text(f"""
SELECT id FROM turns WHERE status = 'running' AND {_WITHOUT_WORKER} AND {_NEXT_ATTEMPT} = {_LAST_ATTEMPT}
AND NOT EXISTS (SELECT FROM turns AS own WHERE own.worker_id = :worker_id AND own.status = 'running'
                AND own.attempts = {_LAST_ATTEMPT})
LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED""")
# The condition is checked again in a new snapshot: a worker may have registered and claimed a turn in between.
_CLAIM = text(f"""
UPDATE turns SET worker_id = :worker_id, epoch = epoch + 1, attempts = {_NEXT_ATTEMPT}
WHERE id = ANY(:ids) AND {_WITHOUT_WORKER}
RETURNING id, epoch, attempts""").bindparams(_IDS)
_LIST_TURNS = text("SELECT id FROM turns WHERE worker_id = :worker_id AND status = 'running'")
_RELEASE = text("""
UPDATE turns SET worker_id = NULL, attempts = attempts + CAST(:is_lost AS boolean)::int
WHERE worker_id = :worker_id AND id = ANY(:ids)""").bindparams(_IDS)
_DEREGISTER = text("DELETE FROM workers WHERE id = :worker_id")
# Reads no value of the turn's row, because one of them cannot be read.
_END_TURN = f"""
{FENCE}, turn AS (
UPDATE turns SET status = 'failed', error = $4::jsonb, completed_at = now(), busy_conversation_id = NULL,
                 response = coalesce(nullif($6::text, ''), turns.response)
FROM fence WHERE turns.id = fence.id
RETURNING turns.*), inserted AS (
INSERT INTO turn_events (turn_id, first_seq, last_seq, payload)
SELECT turn.id, seq, seq, $5::text
FROM turn, (SELECT coalesce(max(last_seq), 0) + {TAKEOVER_JUMP} AS seq FROM turn_events WHERE turn_id = $1) AS next)
{INSERT_USAGE}"""


class WorkerStore(WorkerRepository):
    """See `WorkerRepository`.

    The lease has a connection of its own, so a busy pool does not end it.
    """

    def __init__(self, database: Database, worker_id: UUID) -> None:
        self._database = database
        self._worker_id = worker_id
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def close(self) -> None:
        """Close the lease's connection."""
        if self._connection is not None:
            self._connection.terminate()

    async def renew_lease(self, seconds: float) -> float | None:
        """See `WorkerRepository.renew_lease`."""
        async with self._lend_connection() as connection:
            renewed: float | None = await connection.fetchval(_RENEW, self._worker_id, seconds)
        return renewed

    async def register(self, seconds: float) -> float:
        """See `WorkerRepository.register`."""
        async with self._lend_connection() as connection, connection.transaction():
            await connection.execute(_RELEASE_LOST, self._worker_id)
            # Release 0.1.0 judges workers by process id if their host is its own "name boot-id".
            await connection.execute(_REGISTER, self._worker_id, socket.gethostname(), os.getpid(), seconds)
        return seconds

    async def deregister(self) -> None:
        """See `WorkerRepository.deregister`."""
        async with self._database.session() as session:
            await (await session.connection()).execute(_DEREGISTER, {"worker_id": self._worker_id})

    async def claim_turns(self, silence: timedelta) -> list[TurnClaim]:
        """See `WorkerRepository.claim_turns`."""
        own = {"worker_id": self._worker_id}
        [(has_claimable,)] = await self._database.fetch_rows(_HAS_CLAIMABLE, worker_id=self._worker_id, silence=silence)
        if not has_claimable:
            return []
        async with self._database.session() as session:
            connection = await session.connection()
            if (await connection.execute(_LOCK_OWN_LEASE, own)).first() is None:
                return []
            await connection.execute(_DELETE_DEAD_WORKERS, own | {"silence": silence})
            ids = [
                *(await connection.execute(_LOCK_ORPHANS)).scalars(),
                *(await connection.execute(_LOCK_LAST_ATTEMPT, own)).scalars(),
            ]
            if not ids:
                return []
            rows = (await connection.execute(_CLAIM, own | {"ids": ids})).all()
        return [TurnClaim(row.id, row.epoch, row.attempts) for row in rows]

    async def list_turns(self) -> list[UUID]:
        """See `WorkerRepository.list_turns`."""
        async with self._database.session() as session:
            connection = await session.connection()
            return list((await connection.execute(_LIST_TURNS, {"worker_id": self._worker_id})).scalars())

    async def release_turns(self, turn_ids: list[UUID], *, is_lost: bool = False) -> None:
        """See `WorkerRepository.release_turns`."""
        values = {"worker_id": self._worker_id, "ids": turn_ids, "is_lost": is_lost}
        async with self._database.session() as session:
            await (await session.connection()).execute(_RELEASE, values)

    async def end_turn(self, claim: TurnClaim, error: ErrorInfo, response: str = "") -> None:
        """See `WorkerRepository.end_turn`."""
        event = encode_event(TurnFailed(error=error, saved="text" if response else "prompt"))
        values = (claim.turn_id, self._worker_id, claim.epoch, encode_jsonb(error), event.decode(), response)
        try:
            async with self._database.session() as session:
                await (await session.connection()).exec_driver_sql(_END_TURN, values)
        except TurnTakenOver:
            return

    @asynccontextmanager
    async def _lend_connection(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
        """Lend the lease's connection. An error or a timeout closes it."""
        connection, self._connection = self._connection, None
        with raise_gateway_errors():
            if connection is None or connection.is_closed():
                connection = await self._database.direct.connect()
            try:
                yield connection
            except BaseException:
                connection.terminate()
                raise
        self._connection = connection
