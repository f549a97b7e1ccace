"""Tests of leases and claims, on a real Postgres."""

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain.errors import StorageUnavailable, TurnUnreadable
from gateway.domain.messages import TurnClaim
from gateway.store.database import Database
from gateway.store.worker_release import release_dead_worker
from gateway.store.workers import WorkerStore
from tests.conftest import dsn
from tests.eventually import eventually

SILENCE = timedelta(seconds=60)


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=5)
    yield database
    await database.close()


@pytest.fixture
async def worker(database: Database) -> AsyncGenerator[WorkerStore]:
    """A worker with a lease."""
    store = WorkerStore(database, uuid4())
    await store.register(60)
    yield store
    store.close()


async def insert_turn(
    db: asyncpg.Connection,
    worker_id: UUID | None,
    *,
    options: str = "{}",
    status: str = "running",
    attempts: int = 0,
) -> UUID:
    turn_id = uuid4()
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, worker_id,"
        " attempts) VALUES ($1, 'local', $2, 'x', '[]', 'm', '{}', $3, $4, $5)",
        turn_id,
        status,
        options,
        worker_id,
        attempts,
    )
    return turn_id


async def insert_worker(db: asyncpg.Connection, *, lease: str, seen: str = "now()", pid: int = 1) -> UUID:
    worker_id = uuid4()
    await db.execute(
        f"INSERT INTO workers (id, host, pid, seen_at, lease_until) VALUES ($1, $2, $3, {seen}, {lease})",
        worker_id,
        socket.gethostname(),
        pid,
    )
    return worker_id


async def test_lease_is_renewed_for_its_length(worker: WorkerStore, db: asyncpg.Connection) -> None:
    assert await worker.renew_lease(30) == 30
    assert 25 < await db.fetchval("SELECT extract(epoch FROM lease_until - now())::float8 FROM workers") <= 30


async def test_turns_of_a_worker_whose_lease_is_over_are_claimed(worker: WorkerStore, db: asyncpg.Connection) -> None:
    dead = await insert_worker(db, lease="now() - interval '1 second'")
    turn_id = await insert_turn(db, dead)
    assert await worker.claim_turns(SILENCE) == [TurnClaim(turn_id, epoch=1, attempts=1)]
    assert await db.fetchval("SELECT count(*) FROM workers WHERE id = $1", dead) == 0
    assert await worker.list_turns() == [turn_id]


@pytest.mark.parametrize("pid", [1, 2**22 - 1], ids=["live process", "dead process"])
async def test_turns_of_a_worker_with_a_lease_are_not_claimed_whatever_its_process(
    worker: WorkerStore, db: asyncpg.Connection, pid: int
) -> None:
    """Two PID namespaces may have one host name."""
    other = await insert_worker(db, lease="now() + interval '1 minute'", seen="now() - interval '1 hour'", pid=pid)
    await insert_turn(db, other)
    assert await worker.claim_turns(SILENCE) == []


async def test_worker_of_the_release_without_leases_is_judged_by_its_heartbeat(
    worker: WorkerStore, db: asyncpg.Connection
) -> None:
    live = await insert_worker(db, lease="NULL", pid=2**22 - 1)
    silent = await insert_worker(db, lease="NULL", seen="now() - interval '2 minutes'", pid=os.getpid())
    await insert_turn(db, live)
    turn_id = await insert_turn(db, silent)
    assert [claim.turn_id for claim in await worker.claim_turns(SILENCE)] == [turn_id]


async def test_released_turn_is_claimed_without_an_attempt(worker: WorkerStore, db: asyncpg.Connection) -> None:
    await insert_turn(db, None)
    for epoch in (1, 2, 3):
        [claim] = await worker.claim_turns(SILENCE)
        assert (claim.epoch, claim.attempts) == (epoch, 0)
        await worker.release_turns([claim.turn_id])


async def test_worker_claims_one_turn_in_its_last_attempt_at_a_time(
    worker: WorkerStore, database: Database, db: asyncpg.Connection
) -> None:
    """Turns must not fail with one that kills its workers."""
    other = WorkerStore(database, uuid4())
    await other.register(60)
    suspects = {await insert_turn(db, uuid4(), attempts=1) for _ in range(2)} | {
        await insert_turn(db, None, attempts=2)
    }
    free = {await insert_turn(db, uuid4(), attempts=attempts) for attempts in (0, 2, 3)}
    claims = await worker.claim_turns(SILENCE)
    assert sorted(claim.attempts for claim in claims) == [1, 2, 3, 4]
    [suspect] = {claim.turn_id for claim in claims} - free
    assert suspect in suspects
    assert await worker.claim_turns(SILENCE) == []
    [elsewhere] = await other.claim_turns(SILENCE)
    assert elsewhere.is_last_attempt
    await db.execute("UPDATE turns SET attempts = 0 WHERE id = $1", suspect)  # its step is completed
    [last] = await worker.claim_turns(SILENCE)
    assert {suspect, elsewhere.turn_id, last.turn_id} == suspects
    other.close()


async def test_lost_turn_is_claimed_with_an_attempt_however_it_is_released(
    worker: WorkerStore, db: asyncpg.Connection
) -> None:
    await insert_turn(db, None)
    [claim] = await worker.claim_turns(SILENCE)
    await worker.release_turns([claim.turn_id], is_lost=True)
    [claim] = await worker.claim_turns(SILENCE)
    assert claim.attempts == 1
    await worker.register(60)
    [claim] = await worker.claim_turns(SILENCE)
    assert claim.attempts == 2


async def test_worker_without_a_lease_claims_nothing_and_must_register_anew(
    worker: WorkerStore, database: Database, db: asyncpg.Connection
) -> None:
    other = WorkerStore(database, uuid4())
    await other.register(60)
    turn_id = await insert_turn(db, worker._worker_id)
    ephemeral_id = await insert_turn(db, worker._worker_id, options='{"store": false}')
    await db.execute("UPDATE workers SET lease_until = now() - interval '1 second' WHERE id = $1", worker._worker_id)
    assert await worker.claim_turns(SILENCE) == []
    await db.execute("DELETE FROM workers WHERE id = $1", worker._worker_id)
    assert await worker.renew_lease(60) is None
    assert await worker.register(60) == 60
    assert await worker.list_turns() == [ephemeral_id]
    assert [claim.turn_id for claim in await other.claim_turns(SILENCE)] == [turn_id]
    other.close()


async def test_dead_worker_is_released_at_once(worker: WorkerStore, database_url: str, db: asyncpg.Connection) -> None:
    dead = await insert_worker(db, lease="now() + interval '1 hour'")
    turn_id = await insert_turn(db, dead)
    notifications: list[str] = []
    await db.add_listener("agent_gateway", lambda *arguments: notifications.append(str(arguments[-1])))
    await release_dead_worker(dsn(database_url), dead)
    assert [claim.turn_id for claim in await worker.claim_turns(SILENCE)] == [turn_id]
    await eventually(lambda: notifications)
    assert len(notifications) == 1
    assert "orphan" in notifications[0]


async def test_lease_survives_a_lost_connection(worker: WorkerStore, db: asyncpg.Connection) -> None:
    await worker.renew_lease(60)
    await db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    with suppress(StorageUnavailable):  # unless the end of the connection has arrived already
        await worker.renew_lease(60)
    assert await worker.renew_lease(60) == 60


async def test_turn_is_ended_without_being_read(worker: WorkerStore, db: asyncpg.Connection) -> None:
    turn_id = await insert_turn(db, None, options='{"approval": "perhaps"}')
    await db.execute("INSERT INTO turn_events VALUES ($1, 1, 3, '?')", turn_id)
    [claim] = await worker.claim_turns(SILENCE)
    await worker.end_turn(claim, TurnUnreadable().to_error_info())
    row = await db.fetchrow("SELECT status, error->>'code', completed_at IS NOT NULL FROM turns")
    assert row is not None
    assert tuple(row) == ("failed", "turn_unreadable", True)
    assert await db.fetchval("SELECT error_code FROM turn_usage") == "turn_unreadable"
    assert await db.fetchval("SELECT max(last_seq) FROM turn_events") == 10_003
    await worker.end_turn(TurnClaim(turn_id, epoch=0, attempts=0), TurnUnreadable().to_error_info())
    assert await db.fetchval("SELECT count(*) FROM turn_events") == 2
