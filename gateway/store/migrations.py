"""The schema's migrations. Alembic is imported by who migrates: a start with a current schema needs none of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from gateway.store.database import plain_dsn

if TYPE_CHECKING:
    from alembic.config import Config

ROOT = Path(__file__).resolve().parent.parent.parent


def make_alembic_config(url: str) -> "Config":
    """Alembic's configuration for this project, aimed at `url`."""
    from alembic.config import Config

    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def upgrade_schema(url: str, target: str = "heads") -> None:
    """Bring the schema to `target`. Blocks: run it in a thread.

    Several processes may do so at once: a lock orders them.
    """
    from alembic import command

    command.upgrade(make_alembic_config(url), target)


def list_heads() -> set[str]:
    """The last revision of each branch, by the names of the files: `<branch>_<number>.py`, the revision's own."""
    names = sorted(path.stem for path in (ROOT / "migrations" / "versions").glob("*_*.py"))
    return set({name.rpartition("_")[0]: name for name in names}.values())


async def list_missing_migrations(url: str) -> list[str]:
    """The heads that the database has not reached; empty when its schema is current."""
    connection = await asyncpg.connect(plain_dsn(url), timeout=5)
    try:
        if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
            return sorted(list_heads())
        rows = await connection.fetch("SELECT version_num FROM public.alembic_version")
        return sorted(list_heads() - {row["version_num"] for row in rows})
    finally:
        await connection.close()
