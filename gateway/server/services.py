"""Services that a gateway's process needs around its application.

Imports are inside the functions, because commands that use one of them need not wait for the others.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from gateway.config import Settings


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncGenerator[Settings]:
    """Yield settings that name a database and a model server.

    Missing servers run for the length of the block: the embedded Postgres, the simulated model server.

    Raises:
        ConfigError: the database cannot be used, or anyone could call the gateway.
        EmbeddedPostgresError: the embedded Postgres does not start.
    """
    from gateway.api.security.authentication import reject_open_gateway
    from gateway.server.first_key import ensure_api_key

    with open_postgres(settings) as url:
        await prepare_schema(settings, url)
        stored_keys = await _has_stored_keys(url)
        settings = ensure_api_key(settings, stored_keys=stored_keys)
        reject_open_gateway(settings, stored_keys=stored_keys)
        async with _open_model_server(settings, url) as complete_settings:
            yield complete_settings


async def prepare_schema(settings: Settings, url: str) -> None:
    """Wait for the database, and migrate its schema if allowed.

    MIGRATE_ON_START allows it; the embedded Postgres is always migrated.

    Raises:
        DatabaseError: the database does not answer in time, or its schema is out of date.
    """
    from gateway.store import database, migrations
    from gateway.store.health import check_writes

    direct_url = await database.wait_for_addresses(url, settings)
    with database.raise_database_error(direct_url):
        missing = await migrations.list_missing_migrations(direct_url)
        if missing and (settings.migrate_on_start or settings.postgres_url is None):
            await asyncio.to_thread(migrations.upgrade_schema, direct_url)
        elif missing:
            raise database.DatabaseError("DATABASE_URL: the schema is not up to date: run `agent-gateway db upgrade`")
    await check_writes(url)


async def _has_stored_keys(url: str) -> bool:
    from gateway.store.api_keys import KeyStore
    from gateway.store.database import Database, raise_database_error

    database = Database(url, pool_size=1)
    try:
        with raise_database_error(url):
            return await KeyStore(database).has_keys()
    finally:
        await database.close()


@contextmanager
def open_postgres(settings: Settings) -> Generator[str]:
    """Yield the URL of Postgres.

    Without a configured one, the embedded Postgres runs for the length of the block, and is started again when it is
    gone.
    """
    if settings.postgres_url is not None:
        yield settings.postgres_url
        return
    from gateway.common.logging import get_logger
    from gateway_runtime.embedded_postgres import find_cluster
    from gateway_runtime.postgres.keeper import PostgresKeeper

    log = get_logger(__name__)
    server = find_cluster(settings.gateway_data_dir)
    with PostgresKeeper(
        server,
        on_lost=lambda: log.warning("embedded_postgres_lost"),
        on_failure=lambda error: log.error("embedded_postgres_failed", error=str(error)),
    ):
        yield server.build_url()


@asynccontextmanager
async def _open_model_server(settings: Settings, url: str) -> AsyncGenerator[Settings]:
    """Yield settings that name a database and a model server.

    Without a key, the simulated model server runs in this process.
    """
    if settings.provider is not None:
        yield settings.model_copy(update={"database_url": url})
        return
    from pydantic import SecretStr

    from gateway.simulator import SimulatorSettings, serve_simulator

    async with serve_simulator(SimulatorSettings()) as simulator:
        yield settings.model_copy(
            update={
                "database_url": url,
                "groq_api_key": SecretStr("simulated"),
                "groq_base_url": simulator.base_url,
                "groq_simulated": True,
            }
        )
