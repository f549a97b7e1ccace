"""Tests of the journal's batches, their round trips and their plans."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain import events as e
from gateway.domain.branches import TurnOrigin
from gateway.domain.messages import Message, TurnRecord, TurnRequest, text_block
from gateway.store.database import encode_jsonb
from gateway.store.journal import batch, statements
from gateway.store.journal.batch import CONNECTION_SETTINGS, execute_rows
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.journal.statements import Fence, Row
from gateway_runtime.postgres.connections import PostgresConnector
from tests.eventually import eventually
from tests.gateway.store.test_journal import TURN_END, begin_turn, make_outcome, make_record, make_turn_started

WORKER = uuid4()
CALL = e.ToolCallStarted(step=1, call_id="c1", server="s", tool="t", arguments={"a": [1, None]})
RESULT = e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("437")], structured={"n": [437]})


@pytest.fixture
async def commands(db: asyncpg.Connection) -> list[str]:
    """The commands that `db` has sent since the fixture."""
    commands: list[str] = []

    async def note(record: Any) -> None:
        if not any(word in record.query for word in ("typeinfo", "'jit'")):  # asyncpg reads each type once
            commands.append(record.query.split(maxsplit=1)[0].rstrip(";"))

    db.add_query_logger(note)
    return commands


def build_rows(turn_id: UUID, events: list[e.Event], *, first_seq: int = 1, ends: bool = False) -> list[Row]:
    """Build the rows of a turn's events, of which `TurnStarted` begins it."""
    fence = Fence(turn_id, WORKER, 0)
    entries = [e.JournalEntry(seq, event, e.encode_event(event)) for seq, event in enumerate(events, first_seq)]
    rows = [statements.build_begin_row(make_record(turn_id), WORKER)] if isinstance(events[0], e.TurnStarted) else []
    rows += [statements.build_finish_row(fence, make_outcome())] if ends else []
    return statements.build_commit_rows(fence, rows, entries)


async def read_pairs(db: asyncpg.Connection, query: str) -> dict[object, object]:
    return {row[0]: row[1] for row in await db.fetch(query)}


async def begin(db: asyncpg.Connection, count: int) -> list[UUID]:
    turn_ids = [uuid4() for _ in range(count)]
    await execute_rows(db, [row for each in turn_ids for row in build_rows(each, [make_turn_started(each)])])
    return turn_ids


async def test_starts_calls_deltas_and_ends_of_turns_are_one_round_trip(
    db: asyncpg.Connection, commands: list[str]
) -> None:
    calling, called, writing, ending = await begin(db, 4)
    await execute_rows(db, build_rows(called, [CALL], first_seq=2))
    new = uuid4()
    await db.fetchval("SELECT 1")  # the commands before are noted by now
    commands.clear()
    rows = [
        *build_rows(ending, [e.TextDelta(step=1, text="437"), TURN_END], first_seq=2, ends=True),
        *build_rows(writing, [e.TextDelta(step=1, text="4")], first_seq=2),
        *build_rows(called, [RESULT], first_seq=3),
        *build_rows(calling, [CALL], first_seq=2),
        *build_rows(new, [make_turn_started(new)]),
    ]
    await execute_rows(db, rows)
    last = await read_pairs(db, "SELECT turn_id, max(last_seq) FROM turn_events GROUP BY 1")
    assert last == {calling: 2, called: 3, writing: 2, ending: 3, new: 1}
    assert await read_pairs(db, "SELECT turn_id, outcome FROM tool_calls") == {calling: None, called: "ok"}
    ended = await db.fetch("SELECT id, status, response FROM turns WHERE status <> 'running'")
    assert [tuple(row) for row in ended] == [(ending, "completed", "437")]
    assert [row[0] for row in await db.fetch("SELECT turn_id FROM turn_usage")] == [ending]
    assert [each for each in commands if each != "SELECT"] == ["WITH"]


async def test_rows_of_one_turn_that_build_on_each_other_are_one_transaction(
    db: asyncpg.Connection, commands: list[str]
) -> None:
    whole, beginning = uuid4(), uuid4()
    rows = [
        *build_rows(whole, [make_turn_started(whole), CALL, RESULT, TURN_END], ends=True),
        *build_rows(beginning, [make_turn_started(beginning)]),
    ]
    await execute_rows(db, rows)
    assert await read_pairs(db, "SELECT id, status FROM turns") == {whole: "completed", beginning: "running"}
    assert await db.fetchval("SELECT outcome FROM tool_calls") == "ok"
    assert await db.fetchval("SELECT count(*) FROM turn_usage") == 1
    assert [each for each in commands if each != "SELECT"] == ["BEGIN", *["WITH"] * 4, "COMMIT"]


async def test_a_refused_row_leaves_nothing_of_its_batch(db: asyncpg.Connection) -> None:
    own, stale = await begin(db, 2)
    await db.execute("UPDATE turns SET epoch = 1 WHERE id = $1", stale)
    new = uuid4()
    rows = [
        *build_rows(own, [TURN_END], first_seq=2, ends=True),
        *build_rows(stale, [CALL], first_seq=2),
        *build_rows(new, [make_turn_started(new)]),
    ]
    with pytest.raises(asyncpg.PostgresError, match="another worker owns this turn"):
        await execute_rows(db, rows)
    assert await read_pairs(db, "SELECT id, status FROM turns") == {own: "running", stale: "running"}
    assert await db.fetchval("SELECT count(*) FROM turn_events") == 2


async def test_repeated_batch_changes_nothing(db: asyncpg.Connection) -> None:
    turns = await begin(db, 3)
    rows = [row for each in turns for row in build_rows(each, [CALL], first_seq=2)]
    for _ in range(2):
        await execute_rows(db, rows)
        await execute_rows(db, [row for each in turns for row in build_rows(each, [make_turn_started(each)])])
    assert await db.fetchval("SELECT count(*) FROM tool_calls") == 3
    assert await db.fetchval("SELECT count(*) FROM turn_events") == 6


async def test_turns_of_one_batch_keep_their_own_values(db: asyncpg.Connection) -> None:
    """Missing values and lists must not move to another row."""
    requests = [
        TurnRequest((Message("user", "a"), Message("user", "b")), model="m", user_label="x", request_hash="h"),
        TurnRequest((Message("user", "c"),), model="m", idempotency_key="k"),
        TurnRequest((), model="m", store=False),
    ]
    origin = (await begin(db, 1))[0]
    requests.append(TurnRequest((Message("user", "d"),), model="m", origin=TurnOrigin(origin, on_new_call="stop")))
    records = [TurnRecord(uuid4(), f"owner {n}", request, f"m{n}") for n, request in enumerate(requests)]
    rows = [statements.build_begin_row(each, WORKER) for each in records]
    await execute_rows(
        db, [row for each in rows for row in statements.build_commit_rows(Fence(WORKER, WORKER, 0), [each], [])]
    )
    query = (
        "SELECT owner, model_name, messages::text, user_label, request_hash, idempotency_key, origin_id, is_replay,"
        " caller FROM turns WHERE id = $1"
    )
    for number, (record, request) in enumerate(zip(records, requests, strict=True)):
        stored = await db.fetchrow(query, record.id)
        assert stored is not None
        assert stored["messages"] == await db.fetchval("SELECT $1::text::jsonb::text", encode_jsonb(request.messages))
        assert tuple(stored)[:2] == (f"owner {number}", f"m{number}")
        assert tuple(stored)[3:6] == (request.user_label, request.request_hash, request.idempotency_key)
        assert stored["origin_id"] == (origin if number == 3 else None)
        assert stored["is_replay"] is (number == 3)
        assert stored["caller"] is None


async def test_plans_of_a_small_table_do_not_read_all_of_a_large_one(db: asyncpg.Connection) -> None:
    """A plan stays until the next ANALYZE.

    That may be a minute and many thousand turns later.
    """
    turns = await begin(db, 20)
    await execute_rows(db, [row for each in turns for row in build_rows(each, [CALL], first_seq=2)])
    await db.execute("ANALYZE turns, tool_calls, turn_events")
    await db.execute(CONNECTION_SETTINGS)
    rows: list[Row] = []
    for _ in range(10):
        rows = build_rows(turns[0], [RESULT], first_seq=3) + build_rows(turns[1], [TURN_END], first_seq=3, ends=True)
        await execute_rows(db, rows)
    before = await count_read_rows(db)
    await execute_rows(db, rows)
    assert await count_read_rows(db) == before


async def test_plans_of_a_single_turn_do_not_read_whole_indexes_later(
    database_url: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PLAN_SECONDS", 0.0)
    journal = PostgresJournal(PostgresConnector(database_url), WORKER)
    journal.start()
    try:
        log = await begin_turn(journal)
        await db.execute("ANALYZE turns")
        log.append(CALL)
        await journal.flush(log)
        await db.execute("ANALYZE tool_calls")
        log.append(RESULT)
        await journal.flush(log)
        await db.execute(INSERT_OTHERS)
        log.append(RESULT)
        await journal.flush(log)
    finally:
        await journal.stop()
    query = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'tool_calls'"
    # The session of the journal reports its figures at its end.
    await eventually(lambda: db.fetchval(f"SELECT ({query}) > 0"))
    assert await db.fetchval(query) < 100


INSERT_OTHERS = """
WITH added AS (
    INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)
    SELECT gen_random_uuid(), 'ada', 'completed', '', '[]', 'm', '{}', '{}' FROM generate_series(1, 8000) RETURNING id
) INSERT INTO tool_calls (turn_id, call_id, step, tool) SELECT id, 'c1', 1, 't' FROM added
"""


async def count_read_rows(db: asyncpg.Connection) -> list[Any]:
    """Return the number of rows that scans of whole tables have read."""
    await db.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname = ANY($1) ORDER BY 1"
    return await db.fetch(query, ["turns", "tool_calls", "turn_events", "turn_usage"])
