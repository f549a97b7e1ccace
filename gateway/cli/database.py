"""Run a command's work with the configured database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from gateway.cli.errors import report_config_errors
from gateway.config import ConfigError, Settings, load_settings
from gateway.server.services import open_postgres, prepare_schema

if TYPE_CHECKING:
    from gateway.store.database import Database

T = TypeVar("T")


def run_with_database(function: "Callable[[Database, Settings], Awaitable[T]]") -> T:
    """Run a function with the configured database, and report its errors."""
    from gateway.domain.errors import GatewayError
    from gateway.store import database

    async def run(settings: Settings, url: str) -> T:
        await prepare_schema(settings, url)
        opened = database.Database(url, pool_size=1)
        try:
            return await function(opened, settings)
        except GatewayError as error:
            raise ConfigError(error.message) from None
        finally:
            await opened.close()

    with report_config_errors():
        settings = load_settings()
        with open_postgres(settings) as url:
            return asyncio.run(run(settings, url))
