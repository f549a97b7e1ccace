"""Tests of the migrations against the models and the schema file."""

import asyncio
import io
import os
import sys
import zlib
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from gateway.store import migrations
from gateway.store.database import DatabaseError
from gateway_runtime import embedded_postgres
from tests.conftest import dsn
from tools_server.migrations import find_head_revision


async def test_models_match_the_migrations(database_url: str) -> None:
    await asyncio.to_thread(command.check, migrations.make_alembic_config(database_url))


def test_heads_without_alembic_match_alembic() -> None:
    scripts = ScriptDirectory.from_config(migrations.make_alembic_config(""))
    (merge,) = scripts.get_heads()  # a revision that the merge does not include would be another head
    assert migrations.list_heads() == set(scripts.get_revision(merge).down_revision or ())
    assert find_head_revision() in migrations.list_heads()


async def test_migrations_can_be_downgraded_and_upgraded_again(database_url: str, db: asyncpg.Connection) -> None:
    config = migrations.make_alembic_config(database_url)
    for branch in ("gateway", "tools"):
        await asyncio.to_thread(command.downgrade, config, f"{branch}@base")
    assert await db.fetchval("SELECT to_regclass('turns')") is None
    assert await db.fetchval("SELECT to_regclass('tools.tasks')") is None
    await asyncio.to_thread(migrations.upgrade_schema, database_url)
    assert await db.fetchval("SELECT to_regclass('tools.tasks')") is not None
    assert await migrations.list_missing_migrations(database_url) == []


async def test_migration_waits_for_another_process_for_a_limited_time(
    database_url: str, db: asyncpg.Connection
) -> None:
    config = migrations.make_alembic_config(database_url)
    config.attributes["lock_seconds"] = 0.5
    lock_id = zlib.crc32(b"agent-gateway migrations, polled")
    await db.execute("SELECT pg_advisory_lock($1)", lock_id)
    with pytest.raises(DatabaseError, match=r"Another process has migrated the schema for 0\.5 seconds"):
        await asyncio.to_thread(command.upgrade, config, "heads")
    await db.execute("SELECT pg_advisory_unlock($1)", lock_id)
    await asyncio.to_thread(command.upgrade, config, "heads")


def test_schema_file_matches_the_migrations() -> None:
    output = io.StringIO()
    config = migrations.make_alembic_config("postgresql+asyncpg://")
    config.output_buffer = output
    command.upgrade(config, "heads", sql=True)
    assert output.getvalue() == embedded_postgres.SCHEMA_FILE.read_text(), "run `make schema`"


@pytest.mark.faults
async def test_concurrent_processes_can_upgrade_the_database(postgres: embedded_postgres.EmbeddedPostgres) -> None:
    admin = await asyncpg.connect(dsn(postgres.build_url("postgres")))
    await admin.execute("CREATE DATABASE concurrent_upgrades")
    url = postgres.build_url("concurrent_upgrades")
    try:
        assert len(await migrations.list_missing_migrations(url)) == 2
        command_line = [sys.executable, "-m", "gateway.cli", "db", "upgrade"]
        environment = {**os.environ, "DATABASE_URL": url}
        processes = [await asyncio.create_subprocess_exec(*command_line, env=environment) for _ in range(3)]
        assert [await process.wait() for process in processes] == [0, 0, 0]
        assert await migrations.list_missing_migrations(url) == []
    finally:
        await admin.execute("DROP DATABASE concurrent_upgrades WITH (FORCE)")
        await admin.close()


async def test_search_uses_its_index(database_url: str, db: asyncpg.Connection) -> None:
    await db.execute("SET enable_seqscan = off")
    plan = await db.fetch("EXPLAIN SELECT id FROM turns WHERE search @@ websearch_to_tsquery('simple', 'milk')")
    assert "ix_turns_period_search" in "\n".join(row[0] for row in plan)


async def test_role_without_new_grants_can_store_turns(db: asyncpg.Connection) -> None:
    """Release 0.1.0 runs with such a role after an upgrade.

    It has it until `docs/application_role.sql` runs again.
    """
    role = f"app_{uuid4().hex}"
    await db.execute(f"CREATE ROLE {role}; GRANT SELECT, INSERT ON turns TO {role}; SET ROLE {role}")
    try:
        await db.execute(
            "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
            " VALUES (gen_random_uuid(), 'ada', 'completed', 'Hello', '[]', 'm', '{}', '{}')"
        )
        assert await db.fetchval("SELECT position FROM turns") > 0
    finally:
        await db.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
