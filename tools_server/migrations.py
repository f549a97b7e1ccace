"""Migrations of the schema `tools`.

Alembic is imported on use, because a current schema does not need it.
"""

import asyncio
import time

import structlog

from gateway_runtime.background.waits import Backoff
from gateway_runtime.postgres.connections import PostgresConnector
from gateway_runtime.postgres.errors import is_database_error
from gateway_runtime.settings.shipped_files import find_shipped_file
from tools_server.thread_pool import BoundedThreadPool

MIGRATIONS = find_shipped_file("migrations")
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 5.0
_QUIET_SECONDS = 1.0
"""Seconds without a log entry.

`agent-gateway up` starts the database at the same time.
"""
log = structlog.stdlib.get_logger(__name__)


def upgrade(url: str) -> None:
    """Migrate the schema to the newest revision.

    Blocks. Processes may do so at the same time: a lock orders them.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "tools@head")


async def upgrade_when_available(url: str) -> None:
    """Migrate as soon as the database is available.

    Tools without a database work meanwhile.
    """
    threads = BoundedThreadPool(1)
    backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
    logged_error = ""
    started_at = time.monotonic()
    while True:
        try:
            if not await _is_current(url):
                await threads.run_blocking(_upgrade_or_log, url)
            return
        except Exception as error:
            if not is_database_error(error):
                raise
            name = type(error).__name__
            if time.monotonic() - started_at > _QUIET_SECONDS and name != logged_error:
                logged_error = name
                log.warning("schema_upgrade_delayed", error=name)
        await asyncio.sleep(backoff.next_delay())


def _upgrade_or_log(url: str) -> None:
    from alembic.util import CommandError

    try:
        upgrade(url)
    except CommandError as error:
        log.error("schema_upgrade_failed", error=str(error))  # for example, a newer version made the schema


async def _is_current(url: str) -> bool:
    """Return whether the schema has the newest revision.

    Also checks that the database answers before `upgrade` runs in a thread, which cannot be stopped while it waits.
    """
    connection = await PostgresConnector(url).connect(seconds=3)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return False
        return await connection.fetchval("SELECT $1 IN (SELECT version_num FROM alembic_version)", find_head_revision())
    finally:
        await connection.close()


def find_head_revision() -> str:
    """Return the newest revision of the schema `tools`.

    The files are named after their revisions.
    """
    return max(path.stem for path in (MIGRATIONS / "versions").glob("tools_*.py"))
