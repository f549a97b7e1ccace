"""Tests of the plans of lists."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.messages import Principal
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.history import HistoryStore
from gateway.store.lists.mcp_tasks import McpTaskStore
from gateway.store.lists.tasks import TaskFilter, TaskListStore

INSERT_TURNS = """
WITH made AS (
    SELECT uuidv7(make_interval(mins => -age)) AS id, $1::text[] AS owners, age
    FROM generate_series($2::int, $3::int, -1) AS age
), started AS (
    INSERT INTO conversations (id, owner, title)
    SELECT id, owners[1 + age % cardinality(owners)], repeat('word ', 100) FROM made
)
INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)
SELECT id, owners[1 + age % cardinality(owners)], 'completed', repeat('word ', 100), '[]', 'm', '{}',
       '{"echo": {"mcp_task": {}}}'
FROM made
"""
OTHERS = [f"user-{number}" for number in range(36)]
LISTS: dict[str, Callable[[Database], Awaitable[object]]] = {
    "history": lambda database: HistoryStore(database).list_turns(Principal("ada"), limit=50),
    "tasks": lambda database: TaskListStore(database).list_page(Principal("ada"), TaskFilter(), limit=49, before=None),
    "mcp tasks": lambda database: McpTaskStore(database).list_page(
        Principal("ada"), limit=49, before=None, oldest=UUID(int=0)
    ),
    "conversations": lambda database: ConversationStore(database).list_conversations(
        Principal("ada"), limit=50, before=None
    ),
}


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=1)
    yield database
    await database.close()


async def insert_turns(db: asyncpg.Connection, owners: list[str], ages: range) -> None:
    """Insert turns and conversations of all owners; `ages` are in minutes."""
    await db.execute(INSERT_TURNS, owners, ages[-1], ages[0])
    await db.execute("VACUUM ANALYZE turns, conversations")


async def count_read_rows(database: Database) -> int:
    """Count the rows of both tables that queries have read."""
    await database.fetch_rows("SELECT pg_stat_force_next_flush()")
    rows = await database.fetch_rows(
        "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_user_tables WHERE relname IN ('turns', 'conversations')"
    )
    return int(rows[0][0])


@pytest.mark.parametrize("kind", LISTS)
async def test_list_of_old_rows_reads_none_of_the_newer_rows_of_others(
    database: Database, db: asyncpg.Connection, kind: str
) -> None:
    await insert_turns(db, ["ada", *OTHERS[:3]], range(4_001, 8_001))
    await insert_turns(db, OTHERS, range(1, 4_001))
    before = await count_read_rows(database)
    await LISTS[kind](database)
    assert 0 < await count_read_rows(database) - before <= 3 * 50


async def test_lists_of_a_user_with_many_turns_are_planned_once(database: Database, db: asyncpg.Connection) -> None:
    await insert_turns(db, ["ada", "ada", *OTHERS[:16]], range(1, 20_001))
    for _ in range(10):
        await HistoryStore(database).list_turns(Principal("ada"), limit=50)
    plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '_WITH listed%'"
    [(generic, custom)] = await database.fetch_rows(plans)
    assert (generic, custom) == (5, 5)  # PostgreSQL plans the first five executions in any case
