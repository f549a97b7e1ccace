"""Migrations of the schema.

Alembic is imported only to migrate. See docs/adr/0016.
"""

from typing import TYPE_CHECKING

from gateway_runtime.postgres.connections import PostgresConnector
from gateway_runtime.settings.shipped_files import find_shipped_file

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = find_shipped_file("migrations")


def make_alembic_config(url: str) -> "Config":
    """Build Alembic's configuration for the database at `url`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade_schema(url: str, target: str = "heads") -> None:
    """Migrate the schema to `target`. Blocks: run it in a thread.

    Several processes may call it at once, because a lock orders them.
    """
    from alembic import command

    command.upgrade(make_alembic_config(url), target)


def list_heads() -> set[str]:
    """List the last revision of each branch, from the file names `<branch>_<number>.py`."""
    names = sorted(path.stem for path in (MIGRATIONS / "versions").glob("*_*.py"))
    return set({name.rpartition("_")[0]: name for name in names}.values())


async def list_missing_migrations(url: str) -> list[str]:
    """List the heads that the database has not reached.

    The list is empty if the schema is current.
    """
    connection = await PostgresConnector(url).connect()
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return sorted(list_heads())
        rows = await connection.fetch("SELECT version_num FROM alembic_version")
        return sorted(list_heads() - {row["version_num"] for row in rows})
    finally:
        await connection.close()
