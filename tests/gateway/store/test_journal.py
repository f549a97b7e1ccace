"""Tests of the journal's group commit, on a real Postgres."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.agent.turn_log import TurnLog
from gateway.domain import events as e
from gateway.domain.errors import StorageRefused, StorageUnavailable
from gateway.domain.messages import Message, TurnOutcome, TurnRecord, TurnRequest, Usage, text_block
from gateway.store.journal import statements
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway_runtime.postgres.connections import PostgresConnector
from tests.call_counter import count_instructions
from tests.eventually import eventually

UNREACHABLE = PostgresConnector("postgresql://nobody@127.0.0.1:9/none")


def make_record(turn_id: UUID, prompt: str = "What is 23*19?") -> TurnRecord:
    request = TurnRequest((Message("user", prompt),), model="m")
    return TurnRecord(turn_id, "local", request, "openai/gpt-oss-120b")


def make_turn_started(turn_id: UUID) -> e.TurnStarted:
    return e.TurnStarted(turn_id=str(turn_id), conversation_id=None, model="m")


def make_outcome(response: str = "437") -> TurnOutcome:
    messages = (Message("user", "What is 23*19?"), Message("assistant", response))
    return TurnOutcome("completed", messages, response, 1, Usage(1, 2, 3), 12.5, finish_reason="stop", prompt="")


TURN_END = e.TurnCompleted(finish_reason="stop", usage=Usage(), steps=1, duration_ms=1.0)


@pytest.fixture
async def journal(database_url: str) -> AsyncGenerator[PostgresJournal]:
    journal = PostgresJournal(PostgresConnector(database_url), uuid4(), flush_seconds=0.02)
    journal.start()
    yield journal
    await journal.stop()


async def begin_turn(journal: PostgresJournal) -> TurnLog:
    log = TurnLog(uuid4())
    log.append(make_turn_started(log.turn_id))
    await journal.begin_turn(make_record(log.turn_id), log)
    return log


async def read_events(db: asyncpg.Connection, turn_id: UUID) -> list[e.Event]:
    rows = await db.fetch("SELECT * FROM turn_events WHERE turn_id = $1 ORDER BY first_seq", turn_id)
    expected = 1
    for row in rows:
        assert row["first_seq"] == expected
        expected = row["last_seq"] + 1
    return [e.decode_event(line) for row in rows for line in row["payload"].split("\n")]


async def test_journal_replays_a_turn_exactly(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    log = await begin_turn(journal)
    log.append(e.TextDelta(step=1, text="let me\nsee \u2028 \x00 👋"))
    journal.schedule_flush(log)
    log.append(
        e.ToolCallStarted(step=1, call_id="c1", server="tools", tool="calculator", arguments={"a": 'x\x00\\u0000"'})
    )
    await journal.flush(log)
    log.append(e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("437")], duration_ms=2.0))
    log.append(TURN_END)
    await journal.finish_turn(log, make_outcome())
    assert await read_events(db, log.turn_id) == [entry.event for entry in log.entries]
    assert log.has_ended
    turn = await db.fetchrow("SELECT * FROM turns WHERE id = $1", log.turn_id)
    assert turn is not None
    assert (turn["status"], turn["prompt"], turn["response"]) == ("completed", "What is 23*19?", "437")
    call = await db.fetchrow("SELECT * FROM tool_calls WHERE turn_id = $1", log.turn_id)
    assert call is not None
    assert (call["tool"], call["outcome"], call["duration_ms"]) == ("calculator", "ok", 2.0)
    assert await db.fetchval("SELECT model_name FROM chat_logs WHERE id = $1", log.turn_id) == "openai/gpt-oss-120b"


async def test_tool_call_is_stored_before_its_outcome(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    log = await begin_turn(journal)
    log.append(e.ToolCallStarted(step=1, call_id="c1", server="tools", tool="add_task", arguments={"title": "milk"}))
    await journal.flush(log)
    row = await db.fetchrow("SELECT tool, arguments, outcome FROM tool_calls")
    assert row is not None
    assert tuple(row) == ("add_task", '{"title": "milk"}', None)


async def test_deltas_are_stored_by_the_scheduled_flush(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    log = await begin_turn(journal)
    for letter in "abc":
        log.append(e.TextDelta(step=1, text=letter))
        journal.schedule_flush(log)
    await eventually(lambda: db.fetchval("SELECT max(last_seq) = 4 FROM turn_events"))
    assert await db.fetchval("SELECT count(*) FROM turn_events") == 2


async def test_entries_of_one_loop_iteration_are_one_write(database_url: str, db: asyncpg.Connection) -> None:
    commits: list[int] = []
    journal = PostgresJournal(
        PostgresConnector(database_url), uuid4(), on_commit=lambda writes, _seconds, _succeeded: commits.append(writes)
    )
    journal.start()
    log = await begin_turn(journal)
    log.append(e.StepCompleted(step=1, finish_reason="stop", usage=Usage()))
    journal.schedule_flush(log, at_once=True)
    assert journal.is_writing(log.turn_id)
    log.append(TURN_END)
    await journal.finish_turn(log, make_outcome())
    await journal.stop()
    assert commits == [1, 1]
    assert await read_events(db, log.turn_id) == [entry.event for entry in log.entries]


async def test_flush_at_once_waits_for_no_other_write(database_url: str) -> None:
    journal = PostgresJournal(PostgresConnector(database_url), uuid4(), flush_seconds=1_000)
    journal.start()
    logs = [await begin_turn(journal) for _ in range(2)]
    for log in logs:
        log.append(e.StepCompleted(step=1, finish_reason="stop", usage=Usage()))
        journal.schedule_flush(log, at_once=True)
    await eventually(lambda: all(log.visible_count == len(log.entries) for log in logs))
    assert not any(journal.is_writing(log.turn_id) for log in logs)
    await journal.stop()


async def test_stop_commits_a_flush_that_is_due(database_url: str, db: asyncpg.Connection) -> None:
    journal = PostgresJournal(PostgresConnector(database_url), uuid4())
    journal.start()
    log = await begin_turn(journal)
    log.append(e.StepCompleted(step=1, finish_reason="stop", usage=Usage()))
    journal.schedule_flush(log, at_once=True)
    await journal.stop()
    assert await read_events(db, log.turn_id) == [entry.event for entry in log.entries]


async def test_many_turns_share_few_commits(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    before = await db.fetchval("SELECT pg_current_xact_id()::text::bigint")
    await asyncio.gather(*(begin_turn(journal) for _ in range(200)))
    transactions = await db.fetchval("SELECT pg_current_xact_id()::text::bigint") - before
    assert await db.fetchval("SELECT count(*) FROM turns") == 200
    assert transactions <= 20


async def test_write_refused_by_postgres_fails_alone(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    logs = [TurnLog(uuid4()) for _ in range(3)]
    for log in logs:
        log.append(make_turn_started(log.turn_id))
    unknown_conversation = TurnRecord(
        logs[1].turn_id, "local", TurnRequest((), model="m"), "m", conversation_id=uuid4()
    )
    records = [make_record(logs[0].turn_id), unknown_conversation, make_record(logs[2].turn_id)]
    results = await asyncio.gather(*map(journal.begin_turn, records, logs), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["NoneType", "NotFound", "NoneType"]
    assert await db.fetchval("SELECT count(*) FROM turns") == 2


async def test_lost_connection_does_not_fail_the_turn(journal: PostgresJournal, db: asyncpg.Connection) -> None:
    log = await begin_turn(journal)
    await db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    log.append(TURN_END)
    async with asyncio.timeout(30):
        await journal.finish_turn(log, make_outcome())
    assert await db.fetchval("SELECT status FROM turns") == "completed"
    assert len(await read_events(db, log.turn_id)) == 2


async def test_turn_does_not_start_if_it_cannot_be_stored() -> None:
    journal = PostgresJournal(UNREACHABLE, uuid4(), timeout_seconds=0.2)
    journal.start()
    log = TurnLog(uuid4())
    log.append(make_turn_started(log.turn_id))
    with pytest.raises(StorageUnavailable):
        await journal.begin_turn(make_record(log.turn_id), log)
    await journal.stop(0.1)


async def test_pending_writes_of_an_abandoned_turn_are_dropped() -> None:
    """Postgres would refuse the batch for a row without its turn."""
    journal = PostgresJournal(UNREACHABLE, uuid4(), timeout_seconds=0.2)
    journal.start()
    log = TurnLog(uuid4())
    log.append(make_turn_started(log.turn_id))
    begin = asyncio.create_task(journal.begin_turn(make_record(log.turn_id), log))
    await asyncio.sleep(0)
    log.append(e.ToolCallStarted(step=1, call_id="c", server="s", tool="t", arguments={}))
    call_write = journal.flush(log)
    log.append(TURN_END)
    end_write = journal.finish_turn(log, make_outcome())
    with pytest.raises(StorageUnavailable):
        await begin
    assert call_write.cancelled()
    assert end_write.cancelled()
    rows = [write.row[0] for write in journal._queue.list_writes() if write.row is not None]
    assert rows in ([], [statements.BEGIN_TURN, statements.FINISH_TURN])  # the start may be in an attempt
    await journal.stop(0.1)


async def test_turns_wait_while_the_journal_is_backlogged() -> None:
    journal = PostgresJournal(UNREACHABLE, uuid4(), max_bytes=10_000)
    journal.start()
    log = TurnLog(uuid4())
    assert not journal.is_backlogged
    log.append(e.TextDelta(step=1, text="x" * 20_000))
    journal.flush(log)
    assert journal.is_backlogged
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.wait_for_capacity(), 0.05)
    await journal.stop(0.1)


BYTES_PER_SECOND = 300_000


@pytest.fixture
async def slow_database(db: asyncpg.Connection) -> None:
    """Let the database write events at a limited rate."""
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_sleep(octet_length(NEW.payload) / {BYTES_PER_SECOND}.0); RETURN NEW; END $$"
    )
    await db.execute("CREATE TRIGGER wait BEFORE INSERT ON turn_events FOR EACH ROW EXECUTE FUNCTION wait()")


@pytest.fixture
async def patient_journal(database_url: str) -> AsyncGenerator[PostgresJournal]:
    journal = PostgresJournal(PostgresConnector(database_url), uuid4(), retry_seconds=6.0, timeout_seconds=30.0)
    journal.start()
    yield journal
    await journal.stop(0.1)


@pytest.mark.faults
@pytest.mark.usefixtures("slow_database")
async def test_large_write_of_one_turn_does_not_delay_the_others(
    patient_journal: PostgresJournal, db: asyncpg.Connection
) -> None:
    large = await begin_turn(patient_journal)
    large.append(e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("x" * 20 * BYTES_PER_SECOND)]))
    large_write = patient_journal.flush(large)
    for _ in range(4):
        others = await asyncio.gather(*(begin_turn(patient_journal) for _ in range(10)))
        for log in others:
            log.append(TURN_END)
        await asyncio.gather(*(patient_journal.finish_turn(log, make_outcome()) for log in others))
    assert not large_write.done()
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 40
    with pytest.raises(StorageRefused):
        await large_write
    assert isinstance(large.failure, StorageRefused)
    assert large.visible_count == 1


@pytest.mark.faults
@pytest.mark.usefixtures("slow_database")
async def test_batch_that_cannot_be_written_in_time_is_made_smaller(
    patient_journal: PostgresJournal, db: asyncpg.Connection
) -> None:
    logs = await asyncio.gather(*(begin_turn(patient_journal) for _ in range(4)))
    for log in logs:
        for _ in range(100):
            log.append(e.TextDelta(step=1, text="x" * 3_000))
    async with asyncio.timeout(40):
        await asyncio.gather(*(patient_journal.flush(log) for log in logs))
    for log in logs:
        assert await read_events(db, log.turn_id) == [entry.event for entry in log.entries]


@pytest.mark.faults
async def test_locked_turn_does_not_delay_the_others(patient_journal: PostgresJournal, db: asyncpg.Connection) -> None:
    locked, *others = await asyncio.gather(*(begin_turn(patient_journal) for _ in range(10)))
    async with db.transaction():
        await db.execute("SELECT FROM turns WHERE id = $1 FOR UPDATE", locked.turn_id)
        writes: list[asyncio.Future[None]] = []
        for log in (locked, *others):
            log.append(TURN_END)
            writes.append(patient_journal.finish_turn(log, make_outcome()))
        async with asyncio.timeout(30):
            await asyncio.gather(*writes[1:])
        assert not writes[0].done()
        with pytest.raises(StorageUnavailable):
            await writes[0]
        assert locked.close_reason == "storage_unavailable"
    await eventually(lambda: db.fetchval("SELECT status = 'completed' FROM turns WHERE id = $1", locked.turn_id))


async def count_work_of_giving_up(turns: int) -> int:
    """Count the instructions of giving up turns with four writes each."""
    journal = PostgresJournal(UNREACHABLE, uuid4(), retry_seconds=0.02)
    logs = [TurnLog(uuid4()) for _ in range(turns)]
    for _ in range(4):
        for log in logs:
            log.append(e.TextDelta(step=1, text="x"))
            journal.flush(log)
    with count_instructions("gateway/store/journal/", "gateway/common/concurrency") as instructions:
        journal.start()
        await eventually(lambda: all(log.failure is not None for log in logs))
    await journal.stop(0)
    return instructions.total()


async def test_work_of_giving_up_is_proportional_to_the_number_of_turns() -> None:
    """Otherwise, giving up hundreds of turns blocks all streams of the worker."""
    small = await count_work_of_giving_up(40)
    assert await count_work_of_giving_up(320) < 20 * small  # an attempt more or less doubles it at most
