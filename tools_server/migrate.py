"""The tool server's own schema: its branch of the migrations."""

import asyncio
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

ROOT = Path(__file__).resolve().parent.parent
log = structlog.stdlib.get_logger(__name__)


def upgrade(url: str) -> None:
    """Bring the schema up to date. Blocks. Others may do so at the same time: a lock orders them."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "tools@head")


async def upgrade_when_there(url: str) -> None:
    """Upgrade as soon as the database is there; until then the tools that need none of it serve."""
    pause = 0.1
    while True:
        try:
            await asyncio.to_thread(upgrade, url)
        except (SQLAlchemyError, OSError) as error:
            say = log.warning if pause > 1 else log.debug  # at a common start the database is up a moment later
            say("schema_waits_for_database", error=type(error).__name__)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)
