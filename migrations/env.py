"""Alembic's environment for the tables of both packages, in one version table."""

import asyncio
import zlib
from collections.abc import Generator
from contextlib import contextmanager

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script.revision import RevisionMap
from sqlalchemy import pool, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

import gateway.store.models
import gateway.store.tables.server_tasks
import gateway.store.tables.toolsets
import gateway.store.tables.upstream
import gateway.store.tables.webhooks  # noqa: F401
import tools_server.http_tools.models
import tools_server.tasks.models  # noqa: F401
from gateway.config import load_settings
from gateway.store.database import DatabaseError
from gateway.store.migrations import list_heads
from gateway_runtime.postgres.connections import ConnectionTimeouts, PostgresConnector

config = context.config
LOCK_ID = zlib.crc32(b"agent-gateway migrations, polled")
"""Lock of the process that migrates.

The others poll it, because a concurrent build of an index waits for every query, and so for one that waits for the
lock. Release 0.1.0 waits in a query, for another lock.
"""
POLL_SECONDS = 0.2
LOCK_SECONDS = 3600.0
"""Longest wait for another process that migrates."""
SCHEMAS = {"public", "tools"}
MERGE_REVISION = "merged"
PREVIOUS_HEADS = ("gateway_0010", "tools_0001")
"""Heads of the previous release.

That release starts only if the version table lists these heads, which Alembic replaces by their successors. So a head
is listed beside its successor, and hidden while Alembic runs.
"""
HAS_SUCCESSOR = (
    "EXISTS (SELECT FROM alembic_version AS newer WHERE newer.version_num > previous.version_num"
    " AND split_part(newer.version_num, '_', 1) = split_part(previous.version_num, '_', 1))"
)
HIDE_PREVIOUS_HEADS = (
    f"DELETE FROM alembic_version AS previous WHERE version_num IN {PREVIOUS_HEADS} AND {HAS_SUCCESSOR}"  # noqa: S608
)
LIST_PREVIOUS_HEADS = (
    "INSERT INTO alembic_version SELECT version_num"  # noqa: S608
    f" FROM unnest(ARRAY{list(PREVIOUS_HEADS)}) AS previous (version_num) WHERE {HAS_SUCCESSOR}"
)

FIND_MISSING_SCHEMA = """
SELECT name FROM (
    SELECT trim(split_part(regexp_replace(current_setting('search_path'), '^ *"[$]user" *,', ''), ',', 1)) AS name
) AS first WHERE name <> '"$user"' AND to_regnamespace(name) IS NULL
"""


def get_url() -> str:
    url = config.attributes.get("url") or load_settings().direct_postgres_url
    if url is None:
        raise SystemExit("Set DATABASE_URL (or POSTGRES_HOST …), or run `agent-gateway db upgrade`.")
    return url


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "schema" or name is None or name in SCHEMAS


def hide_merge_revision() -> None:
    """Hide the merge revision from every command except those to `head`.

    With it, `tools@head` would include the gateway's tables, and each head of a branch would be out of date.
    """
    destination = context._proxy.context_opts.get("destination_rev")
    if destination in ("head", MERGE_REVISION, ("head",), (MERGE_REVISION,)):
        return
    load_revisions = context.script._load_revisions
    context.script.revision_map = RevisionMap(
        lambda: (script for script in load_revisions() if script.revision != MERGE_REVISION)
    )


def list_branch_heads(*, ctx: MigrationContext, step: MigrationInfo, **_: object) -> None:
    """List the branches' heads instead of the merge revision.

    It runs in the transaction of the merge. A version table that lists the merge revision would hide later revisions of
    the branches, which the merge revision then includes.
    """
    if MERGE_REVISION in step.up_revision_ids:
        ctx.execute(f"INSERT INTO alembic_version SELECT unnest(ARRAY{sorted(list_heads())})")
        ctx.execute(f"DELETE FROM alembic_version WHERE version_num = '{MERGE_REVISION}'")  # noqa: S608


def change_version_table(connection: Connection, statement: str) -> None:
    if connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")):
        connection.execute(text(statement))
    connection.commit()


@contextmanager
def hide_previous_heads(connection: Connection) -> Generator[None]:
    """Hide the heads of the previous release.

    They are listed again at the end, also after a migration that failed.
    """
    change_version_table(connection, HIDE_PREVIOUS_HEADS)
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    finally:
        if not connection.invalidated:  # its error says more than another one
            change_version_table(connection, LIST_PREVIOUS_HEADS)


def create_schema(connection: Connection) -> None:
    """Create the first schema of the search path, if it is missing.

    PostgreSQL would create the tables in the next one.
    """
    schema = connection.scalar(text(FIND_MISSING_SCHEMA))
    if schema is not None:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    connection.commit()


async def acquire_lock(connection: AsyncConnection) -> None:
    """Wait until no other process migrates.

    Raises:
        DatabaseError: one has migrated for `LOCK_SECONDS`.
    """
    seconds = config.attributes.get("lock_seconds", LOCK_SECONDS)
    try:
        async with asyncio.timeout(seconds):
            while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK_ID}):
                await connection.commit()
                await asyncio.sleep(POLL_SECONDS)
            await connection.commit()
    except TimeoutError:
        raise DatabaseError(f"Another process has migrated the schema for {seconds:g} seconds.") from None


def run_migrations(connection: Connection) -> None:
    """Run the migrations, and release the lock."""
    create_schema(connection)
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        include_schemas=True,
        include_name=include_name,
        compare_server_default=False,
        transaction_per_migration=True,
        on_version_apply=list_branch_heads,
    )
    with hide_previous_heads(connection), context.begin_transaction():
        context.run_migrations()
    connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK_ID})
    connection.commit()


async def run_online() -> None:
    # A migration may take long, and may wait for another process that migrates.
    limits = ConnectionTimeouts(statement=0, lock=0, transaction=0)
    engine = PostgresConnector(get_url(), limits).create_engine(poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await acquire_lock(connection)
        await connection.run_sync(run_migrations)
    await engine.dispose()


hide_merge_revision()
if context.is_offline_mode():
    context.configure(
        url=get_url(), target_metadata=SQLModel.metadata, literal_binds=True, on_version_apply=list_branch_heads
    )
    with context.begin_transaction():
        context.run_migrations()
        context.execute(LIST_PREVIOUS_HEADS)
else:
    asyncio.run(run_online())
