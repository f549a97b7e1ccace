"""Execution of many turns' statements in one round trip.

See docs/adr/0002.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

import asyncpg

from gateway.store.database import encode_jsonb
from gateway.store.journal.statements import EXECUTION_ORDER, Row, Statement, Values

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Each row of a batch is found by its key. A plan of the time when a table was small would read all of it, and a plan
# for each batch would cost as much as its execution.
CONNECTION_SETTINGS = """
SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
SET enable_mergejoin = off"""
PLAN_SECONDS = 10.0
"""Time that the plans of a connection are used.

A plan of a table with a few rows reads a whole index, which is as cheap there.
"""
DISCARD_PLANS = "DISCARD PLANS"
_FENCED_ROWS = """
{name} AS MATERIALIZED (
SELECT new.*, coalesce((SELECT turns.id FROM turns WHERE turns.id = new.turn_id AND turns.epoch = new.epoch
    AND (turns.worker_id = new.worker_id OR turns.worker_id IS NULL AND turns.status = 'waiting') FOR SHARE),
    refuse_stale_write(new.turn_id)) AS id
FROM json_to_recordset({parameter}) AS new ({columns}))"""
"""SQL of the rows of a fenced statement. See `FENCE`."""
_ROWS = "{name}_rows AS MATERIALIZED (SELECT * FROM json_to_recordset({parameter}) AS new ({columns}))"
_INSERT_EVENTS = """
INSERT INTO turn_events (turn_id, first_seq, last_seq, payload) {events}
ON CONFLICT (turn_id, first_seq) DO UPDATE SET last_seq = EXCLUDED.last_seq, payload = EXCLUDED.payload
WHERE turn_events.last_seq < EXCLUDED.last_seq"""
"""SQL that ends a batch with the events of its rows.

A write whose first attempt was committed unnoticed is repeated, maybe with more events behind it.
"""
_EVENTS = "SELECT id, first_seq, last_seq, payload FROM {name} WHERE first_seq IS NOT NULL"


async def execute_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Execute the rows of a batch in one transaction."""
    rounds = _divide_into_rounds(rows)
    if len(rounds) == 1:
        await _execute_round(connection, rounds[0])  # is a transaction of its own
        return
    async with connection.transaction():
        for by_statement in rounds:
            await _execute_round(connection, by_statement)


def _divide_into_rounds(rows: Iterable[Row]) -> list[dict[Statement, list[Values]]]:
    """Divide the rows into rounds, each of which is one round trip.

    The parts of an SQL statement do not see what the others write. So a round has rows of one `Statement` for each
    turn, whose statements keep their order. Nearly all batches have one round.
    """
    by_statement: dict[Statement, list[Values]] = {}
    for statement, values in rows:
        by_statement.setdefault(statement, []).append(values)
    if len(by_statement) == 1:
        return [by_statement]
    rounds: list[dict[Statement, list[Values]]] = [{}]
    latest: dict[object, tuple[Statement, int]] = {}
    for statement in EXECUTION_ORDER:
        for values in by_statement.get(statement, ()):
            earlier, number = latest.get(values[0], (statement, 0))
            if earlier is not statement:
                number += 1
                if number == len(rounds):
                    rounds.append({})
            latest[values[0]] = statement, number
            rounds[number].setdefault(statement, []).append(values)
    return rounds


async def _execute_round(connection: Connection, by_statement: dict[Statement, list[Values]]) -> None:
    parameters = [
        encode_jsonb([dict(zip(statement.names, values, strict=True)) for values in rows])
        for statement, rows in by_statement.items()
    ]
    await connection.execute(_build_round_sql(tuple(by_statement)), *parameters)


@lru_cache(maxsize=64)
def _build_round_sql(statements: tuple[Statement, ...]) -> str:
    """Build one SQL statement, with a parameter for each kind of rows."""
    parts: list[str] = []
    for number, statement in enumerate(statements, start=1):
        rows = _FENCED_ROWS if statement.is_fenced else _ROWS
        parts.append(rows.format(name=statement.name, parameter=f"${number}::json", columns=statement.columns))
        if statement.sql:
            parts.append(statement.sql)
    events = " UNION ALL ".join(_EVENTS.format(name=each.name) for each in statements if each.carries_events)
    return f"WITH {','.join(parts)} {_INSERT_EVENTS.format(events=events) if events else 'SELECT'}"
