"""Real parts for every test: Postgres, a fresh database each, the simulated Groq, the tool server, the gateway."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url
from uuid_utils import uuid4

from gateway.store import database, embedded

TEMPLATE = "template_gateway"
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def postgres() -> Generator[embedded.EmbeddedPostgres]:
    """One embedded Postgres for the whole run, with a migrated template database."""
    with tempfile.TemporaryDirectory(prefix="agw-tests-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        server = embedded.acquire(Path(directory), settings=FAST)
        try:
            asyncio.run(_execute(server.url("postgres"), f"CREATE DATABASE {TEMPLATE}"))
            database.upgrade(server.url(TEMPLATE))
            yield server
        finally:
            server.release()


@pytest.fixture
async def database_url(postgres: embedded.EmbeddedPostgres) -> AsyncGenerator[str]:
    """A fresh, migrated database, as SQLAlchemy's URL. Copied from the template: some 20 ms."""
    name = f"test_{uuid4().hex}"
    await _execute(postgres.url("postgres"), f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield postgres.url(name)
    await _execute(postgres.url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection to the test's database, to look at what is kept."""
    connection = await asyncpg.connect(dsn(database_url))
    try:
        yield connection
    finally:
        await connection.close()


def dsn(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
