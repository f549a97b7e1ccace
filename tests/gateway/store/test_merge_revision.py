"""Tests of Alembic's command line and of the merge revision."""

import asyncio
import io
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from gateway.store import migrations
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from tests.conftest import dsn
from tests.e2e.running_stack import ROOT, clean_environment

ALEMBIC = (str(Path(sys.executable).with_name("alembic")),)
PREVIOUS_HEADS = {"gateway_0010", "tools_0001"}
"""Release 0.1.0 starts only if they are listed."""


@pytest.fixture
async def empty_url(postgres: EmbeddedPostgres) -> AsyncGenerator[str]:
    admin = await asyncpg.connect(dsn(postgres.build_url("postgres")))
    name = f"alembic_{uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield postgres.build_url(name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def run_alembic(url: str, *arguments: str) -> str:
    """Run `alembic` as an operator does; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *ALEMBIC,
        *arguments,
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    return output


async def list_versions(url: str) -> set[str]:
    connection = await asyncpg.connect(dsn(url))
    try:
        return {row[0] for row in await connection.fetch("SELECT version_num FROM alembic_version")}
    finally:
        await connection.close()


async def list_tables(url: str) -> set[str]:
    connection = await asyncpg.connect(dsn(url))
    try:
        rows = await connection.fetch(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables"
            " WHERE table_schema IN ('public', 'tools') AND table_name <> 'alembic_version'"
        )
        return {row[0] for row in rows}
    finally:
        await connection.close()


@pytest.mark.faults
async def test_alembic_upgrade_head_creates_all_tables_of_an_empty_database(empty_url: str) -> None:
    await run_alembic(empty_url, "upgrade", "head")
    assert {"public.turns", "tools.tasks"} <= await list_tables(empty_url)
    assert await list_versions(empty_url) == migrations.list_heads() | PREVIOUS_HEADS
    assert await migrations.list_missing_migrations(empty_url) == []
    await asyncio.to_thread(command.check, migrations.make_alembic_config(empty_url))


@pytest.mark.faults
async def test_tools_head_creates_only_the_tool_servers_tables_and_head_the_rest(empty_url: str) -> None:
    await run_alembic(empty_url, "upgrade", "tools@head")
    tables = await list_tables(empty_url)
    assert "tools.tasks" in tables
    assert {table for table in tables if table.startswith("public.")} == set()
    config = migrations.make_alembic_config(empty_url)
    await asyncio.to_thread(command.upgrade, config, "head")
    assert "public.turns" in await list_tables(empty_url)
    await asyncio.to_thread(command.upgrade, config, "tools@head")
    assert await migrations.list_missing_migrations(empty_url) == []


async def test_head_continues_a_database_whose_branches_are_behind(database_url: str) -> None:
    """The merge is the same revision for all of their later revisions."""
    config = migrations.make_alembic_config(database_url)
    for revision in PREVIOUS_HEADS:
        await asyncio.to_thread(command.downgrade, config, revision)
    assert await list_versions(database_url) == PREVIOUS_HEADS
    await asyncio.to_thread(command.upgrade, config, "head")
    await asyncio.to_thread(command.upgrade, config, "head")
    assert await list_versions(database_url) == migrations.list_heads() | PREVIOUS_HEADS
    await asyncio.to_thread(command.check, config)


@pytest.mark.parametrize(
    "obstacle",
    [
        "INSERT INTO alembic_version VALUES ('gateway_9999')",
        "UPDATE alembic_version SET version_num = 'gateway_0011' WHERE version_num ~ '^gateway_00(?!10)'",
    ],
    ids=["unknown-revision", "migration-that-fails"],
)
async def test_failed_upgrade_lets_the_previous_release_start(database_url: str, obstacle: str) -> None:
    connection = await asyncpg.connect(dsn(database_url))
    await connection.execute(obstacle)
    await connection.close()
    with pytest.raises((CommandError, DBAPIError)):
        await asyncio.to_thread(command.upgrade, migrations.make_alembic_config(database_url), "heads")
    assert await list_versions(database_url) >= PREVIOUS_HEADS


def write_sql(target: str) -> list[str]:
    output = io.StringIO()
    config = migrations.make_alembic_config("postgresql+asyncpg://")
    config.output_buffer = output
    command.upgrade(config, target, sql=True)
    return output.getvalue().splitlines()


def test_merge_is_the_one_head_and_runs_no_sql() -> None:
    scripts = ScriptDirectory.from_config(migrations.make_alembic_config(""))
    (head,) = scripts.get_heads()
    assert set(scripts.get_revision(head).down_revision or ()) == migrations.list_heads()
    branches = write_sql("heads")
    added = [line for line in write_sql("head") if line and line not in branches]
    assert added
    assert all("alembic_version" in line or line.startswith("-- Running upgrade") for line in added)


async def test_schema_can_be_stamped_with_head(database_url: str) -> None:
    config = migrations.make_alembic_config(database_url)
    await asyncio.to_thread(command.stamp, config, "head")
    assert await list_versions(database_url) == migrations.list_heads() | PREVIOUS_HEADS


def test_revisions_continue_their_branch() -> None:
    scripts = ScriptDirectory.from_config(migrations.make_alembic_config(""))
    for script in scripts.walk_revisions():
        if script.revision == "merged":
            continue
        branch, _, number = script.revision.rpartition("_")
        previous = None if number == "0001" else f"{branch}_{int(number) - 1:04}"
        assert script.down_revision == previous, (
            f"{script.revision} must continue its branch, not the merge: set down_revision = {previous!r}."
            f" `alembic revision --head` cannot know that, so write it by hand; migrations/versions/merged.py follows."
        )
