"""The tool server's own schema: its branch of the migrations. Alembic is imported by who migrates."""

import asyncio
import time
from pathlib import Path

import asyncpg
import structlog
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from tools_server.thread_pool import BoundedThreadPool

ROOT = Path(__file__).resolve().parent.parent
_MAX_BACKOFF_SECONDS = 5.0
_QUIET_SECONDS = 1.0
"""Seconds that a database may take to come without a word about it: `agent-gateway up` starts both at once."""
log = structlog.stdlib.get_logger(__name__)


def upgrade(url: str) -> None:
    """Bring the schema up to date. Blocks. Others may do so at the same time: a lock orders them."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "tools@head")


async def upgrade_when_available(url: str) -> None:
    """Upgrade as soon as the database is there; until then the tools that need none of it serve."""
    threads, pause, told, begun = BoundedThreadPool(1), 0.1, "", time.monotonic()
    while True:
        try:
            if not await _is_current(url):
                await threads.run_blocking(_upgrade_or_log, url)
            return
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if time.monotonic() - begun > _QUIET_SECONDS and type(error).__name__ != told:
                told = type(error).__name__
                log.warning("schema_waits_for_database", error=told)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _MAX_BACKOFF_SECONDS)


def _upgrade_or_log(url: str) -> None:
    from alembic.util import CommandError

    try:
        upgrade(url)
    except CommandError as error:
        log.error("schema_cannot_be_upgraded", error=str(error))  # made by a newer version, say


async def _is_current(url: str) -> bool:
    """Also sees that somebody answers before there is a thread: one that waits for a dead host could not be stopped."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(dsn, timeout=3)
    try:
        if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
            return False
        return await connection.fetchval(
            "SELECT $1 IN (SELECT version_num FROM public.alembic_version)", find_head_revision()
        )
    finally:
        await connection.close()


def find_head_revision() -> str:
    """The last revision of the tool server's branch: files have the names of their revisions."""
    return max(path.stem for path in (ROOT / "migrations" / "versions").glob("tools_*.py"))
