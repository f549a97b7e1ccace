"""The search index is replaced in a database that is in use."""

import asyncio
import os
import sys
from functools import partial

import asyncpg
import pytest
from alembic import command
from sqlalchemy.exc import SQLAlchemyError

from gateway.store import migrations
from gateway_runtime.postgres import connections
from tests.conftest import dsn
from tests.eventually import eventually

pytestmark = pytest.mark.faults

INSERT = (
    "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
    " VALUES (gen_random_uuid(), 'ada', 'completed', 'Hello', '[]', 'm', '{}', '{}')"
)
BUILDER = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'virtualxid'"
    " AND query LIKE '%INDEX CONCURRENTLY%ix_turns_period_search%'"
)
WAITS_FOR_LOCK = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%'"
)
INDEXES = (
    "SELECT relname::text, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid"
    " WHERE relname IN ('ix_turns_search', 'ix_turns_period_search')"
)


async def test_turns_are_written_while_processes_replace_the_index(
    database_url: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted build leaves an invalid index, which the next one replaces.

    No build is too long.
    """
    monkeypatch.setattr(connections, "ConnectionTimeouts", partial(connections.ConnectionTimeouts, silence=1.0))
    config = migrations.make_alembic_config(database_url)
    await asyncio.to_thread(command.downgrade, config, "gateway@gateway_0033")
    assert await db.fetch(INDEXES) == [("ix_turns_search", True)]
    writer = await asyncpg.connect(dsn(database_url))
    try:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(INSERT)
        upgrade = asyncio.create_task(asyncio.to_thread(migrations.upgrade_schema, database_url))
        await db.execute("SELECT pg_terminate_backend($1)", await eventually(lambda: db.fetchval(BUILDER)))
        with pytest.raises(SQLAlchemyError):
            await upgrade
        assert ("ix_turns_period_search", False) in await db.fetch(INDEXES)

        upgrade = asyncio.create_task(asyncio.to_thread(migrations.upgrade_schema, database_url))
        await eventually(lambda: db.fetchval(BUILDER))
        environment = {**os.environ, "DATABASE_URL": database_url}
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "db", "upgrade", env=environment
        )
        await eventually(lambda: db.fetchval(WAITS_FOR_LOCK))
        await db.execute(f"SET lock_timeout = '5s'; {INSERT}")
        await eventually(lambda: db.fetchval(f"{BUILDER} AND clock_timestamp() - query_start > '1.3 s'"))
        await transaction.commit()
        await upgrade  # a process that waits in a query would be a deadlock
        assert await second.wait() == 0
        assert await db.fetch(INDEXES) == [("ix_turns_period_search", True)]
        assert await migrations.list_missing_migrations(database_url) == []
    finally:
        await writer.close()
