"""The schema's migrations. Apart from `database`, as only a start and `agent-gateway db` need Alembic."""

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from gateway.store.database import plain_dsn

ROOT = Path(__file__).resolve().parent.parent.parent


def alembic_config(url: str) -> Config:
    """Alembic's configuration for this project, aimed at `url`."""
    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def upgrade(url: str, target: str = "heads") -> None:
    """Bring the schema to `target`. Blocks: run it in a thread.

    Several processes may do so at once: a lock orders them.
    """
    command.upgrade(alembic_config(url), target)


async def missing_migrations(url: str) -> list[str]:
    """The heads that the database has not reached; empty when its schema is current."""
    heads = set(ScriptDirectory.from_config(alembic_config(url)).get_heads())
    connection = await asyncpg.connect(plain_dsn(url), timeout=5)
    try:
        if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
            return sorted(heads)
        rows = await connection.fetch("SELECT version_num FROM public.alembic_version")
        return sorted(heads - {row["version_num"] for row in rows})
    finally:
        await connection.close()
