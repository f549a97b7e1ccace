"""Writes by a worker that lost its turn, on a real Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.agent.turn_log import TurnLog
from gateway.domain import events as e
from gateway.domain.errors import TurnTakenOver
from gateway.domain.messages import PendingInput, Question, text_block
from gateway.domain.spending import BudgetReservation
from gateway.store.database import Database
from gateway.store.journal import statements
from gateway.store.journal.batch import execute_rows
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.questions import QuestionStore
from gateway.store.usage import UsageStore
from gateway_runtime.postgres.connections import PostgresConnector
from tests.conftest import dsn
from tests.eventually import eventually
from tests.gateway.store.test_journal import TURN_END, begin_turn, make_outcome, read_events

WORKER, OTHER_WORKER = uuid4(), uuid4()
CALL = e.ToolCallStarted(step=1, call_id="c1", server="tools", tool="add_task", arguments={"title": "milk"})
RESULT = e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("done")], duration_ms=2.0)
EDIT = e.InputResolved(input_id="i1", call_id="c1", action="accept", content={"arguments": {"title": "tea"}})
Write = Callable[[PostgresJournal, TurnLog], Awaitable[None]]


def write_event(event: e.Event) -> Write:
    async def write(journal: PostgresJournal, log: TurnLog) -> None:
        log.append(event)
        await journal.flush(log)

    return write


async def write_end(journal: PostgresJournal, log: TurnLog) -> None:
    log.append(TURN_END)
    await journal.finish_turn(log, make_outcome())


async def write_suspension(journal: PostgresJournal, log: TurnLog) -> None:
    await journal.suspend_turn(log, [])


WRITES: dict[str, Write] = {
    "events": write_event(e.TextDelta(step=1, text="late")),
    "start of a call": write_event(e.ToolCallStarted(step=1, call_id="c2", server="s", tool="t", arguments={})),
    "result of a call": write_event(RESULT),
    "edited arguments": write_event(EDIT),
    "end": write_end,
    "suspension": write_suspension,
}


@pytest.fixture
async def journal(database_url: str) -> AsyncGenerator[PostgresJournal]:
    journal = PostgresJournal(PostgresConnector(database_url), WORKER, flush_seconds=0.02)
    journal.start()
    yield journal
    await journal.stop()


async def begin_call(journal: PostgresJournal) -> TurnLog:
    """Begin a turn with an open call."""
    log = await begin_turn(journal)
    log.append(CALL)
    await journal.flush(log)
    return log


async def claim(db: asyncpg.Connection, turn_id: UUID) -> None:
    await db.execute("UPDATE turns SET worker_id = $2, epoch = epoch + 1 WHERE id = $1", turn_id, OTHER_WORKER)


async def read_rows(db: asyncpg.Connection) -> list[asyncpg.Record]:
    return [row for table in ("turns", "turn_events", "tool_calls") for row in await db.fetch(f"SELECT * FROM {table}")]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_stale_write_fails_and_neither_stores_nor_shows_anything(
    journal: PostgresJournal, db: asyncpg.Connection, write: Write
) -> None:
    log = await begin_call(journal)
    await claim(db, log.turn_id)
    before, visible = await read_rows(db), log.visible_count
    with pytest.raises(TurnTakenOver):
        await write(journal, log)
    assert await read_rows(db) == before
    assert log.close_reason == "storage_unavailable"
    assert not log.has_ended
    shown = [entry.event for batch in [batch async for batch in log.follow()] for entry in batch]
    assert [event for event in shown if not isinstance(event, e.TextDelta)] == [
        entry.event for entry in log.entries[:visible]
    ]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_write_of_an_earlier_epoch_of_the_same_worker_fails(
    journal: PostgresJournal, db: asyncpg.Connection, write: Write
) -> None:
    log = await begin_call(journal)
    await db.execute("UPDATE turns SET epoch = epoch + 1")
    with pytest.raises(TurnTakenOver):
        await write(journal, log)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_write_of_the_owner_succeeds(journal: PostgresJournal, db: asyncpg.Connection, write: Write) -> None:
    log = await begin_call(journal)
    before = await read_rows(db)
    await write(journal, log)
    assert await read_rows(db) != before
    assert log.close_reason is None


async def test_stale_write_fails_alone_in_its_batch(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    logs = [await begin_turn(journal) for _ in range(5)]
    await claim(db, logs[2].turn_id)
    for log in logs:
        log.append(e.ToolLog(call_id="c", level="info", message="x"))
    results = await asyncio.gather(*(journal.flush(log) for log in logs), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["NoneType"] * 2 + ["TurnTakenOver"] + ["NoneType"] * 2
    assert [len(await read_events(db, log.turn_id)) for log in logs] == [2, 2, 1, 2, 2]
    assert [log.visible_count == len(log.entries) for log in logs] == [True, True, False, True, True]


async def test_write_waits_for_a_claim_in_progress_and_then_fails(
    journal: PostgresJournal, db: asyncpg.Connection, database_url: str
) -> None:
    log = await begin_turn(journal)
    log.append(CALL)
    claimer = await asyncpg.connect(dsn(database_url))
    try:
        async with claimer.transaction():
            await claim(claimer, log.turn_id)
            write = journal.flush(log)
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await eventually(lambda: db.fetchval(blocked))
            assert not write.done()
        with pytest.raises(TurnTakenOver):
            await write
    finally:
        await claimer.close()
    assert await db.fetchval("SELECT count(*) FROM tool_calls") == 0


async def test_claim_skips_a_turn_whose_owner_is_writing(
    journal: PostgresJournal, db: asyncpg.Connection, database_url: str
) -> None:
    log = await begin_turn(journal)
    fence = statements.Fence(log.turn_id, WORKER, 0)
    writer = await asyncpg.connect(dsn(database_url))
    try:
        async with writer.transaction():
            await execute_rows(writer, [(statements.INSERT_EVENTS, (*fence, 2, 2, "{}"))])
            assert await db.fetch("SELECT id FROM turns FOR NO KEY UPDATE SKIP LOCKED") == []
    finally:
        await writer.close()


async def test_suspension_may_run_again_after_its_commit(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    """The acknowledgement of a commit may be lost with the connection."""
    log = await begin_turn(journal)
    fence = statements.Fence(log.turn_id, WORKER, 0)
    entry = e.JournalEntry(2, CALL, e.encode_event(CALL))
    for _ in range(2):
        await execute_rows(db, statements.build_commit_rows(fence, [statements.build_suspend_row(fence, [])], [entry]))
    assert await db.fetchval("SELECT status FROM turns") == "waiting"


async def test_questions_of_a_stale_owner_are_refused(
    journal: PostgresJournal, db: asyncpg.Connection, database_url: str
) -> None:
    log = await begin_turn(journal)
    database = Database(database_url, pool_size=1)
    questions = QuestionStore(database, WORKER, lifetime=timedelta(days=1))
    needed = PendingInput((Question("approval", kind="approval", message="Add it?"),))
    try:
        assert len(await questions.save_questions(log.turn_id, "c1", needed, epoch=0)) == 1
        await claim(db, log.turn_id)
        with pytest.raises(TurnTakenOver):
            await questions.save_questions(log.turn_id, "c1", needed, epoch=0)
    finally:
        await database.close()
    assert await db.fetchval("SELECT count(*) FROM turn_inputs") == 1


async def test_stale_worker_expires_no_questions(
    journal: PostgresJournal, database_url: str, db: asyncpg.Connection
) -> None:
    log = await begin_call(journal)
    database = Database(database_url)
    questions = QuestionStore(database, WORKER, lifetime=timedelta(days=1))
    inline = PendingInput((Question("seat", "question", "Which row?", held=True),))
    try:
        await questions.save_questions(log.turn_id, "c1", inline, epoch=0)
        await claim(db, log.turn_id)
        with pytest.raises(TurnTakenOver):
            await questions.expire_inline(log.turn_id, epoch=0)
        assert await db.fetchval("SELECT count(*) FROM turn_inputs WHERE answer IS NULL") == 1
    finally:
        await database.close()


async def reserve(usage: UsageStore, reservation: BudgetReservation) -> None:
    async with usage.begin_transaction("local") as transaction:
        await transaction.reserve(reservation, None)


async def test_stale_worker_changes_no_reservation_of_a_budget(
    journal: PostgresJournal, database_url: str, db: asyncpg.Connection
) -> None:
    log = await begin_turn(journal)
    database = Database(database_url)
    usage = UsageStore(database, WORKER)
    own = BudgetReservation(log.turn_id, 0, 10, 0.1, 500, 0.5)
    try:
        await reserve(usage, own)
        await usage.settle(own)
        for end_ownership in (claim(db, log.turn_id), take_back(db, log.turn_id)):
            await end_ownership
            before = await db.fetch("SELECT * FROM budget_holds")
            assert len(before) == 1
            for write in (reserve, UsageStore.settle):
                with pytest.raises(TurnTakenOver):
                    await write(usage, BudgetReservation(log.turn_id, 0, 99, 9.9, 0, 0.0))
            assert await db.fetch("SELECT * FROM budget_holds") == before
        await reserve(usage, BudgetReservation(log.turn_id, 2, 20, 0.2, 500, 0.5))
        assert await db.fetchval("SELECT tokens FROM budget_holds") == 20
    finally:
        await database.close()


async def take_back(db: asyncpg.Connection, turn_id: UUID) -> None:
    await db.execute("UPDATE turns SET worker_id = $2, epoch = epoch + 1 WHERE id = $1", turn_id, WORKER)
