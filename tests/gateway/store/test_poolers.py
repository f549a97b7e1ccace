"""Tests with a real PgBouncer."""

import asyncio
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest

from gateway.config import ConfigError, load_settings
from gateway.simulator import Simulator
from gateway.store import migrations
from gateway.store.database import Database, wait_for_addresses, wait_until_ready
from tests.requirements import require
from tests.stack import Gateway, serve_gateway
from tests.tcp_postgres import PASSWORD, TcpPostgres, find_program, serve_pgbouncer, serve_tcp_postgres
from tools_server.tasks.store import TaskStore

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    require(bool(find_program("pgbouncer")), "PgBouncer (`make debian-packages`)"),
]
ESCAPED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def server() -> Generator[TcpPostgres]:
    with serve_tcp_postgres() as server:
        literal = PASSWORD.replace("'", "''")
        asyncio.run(_execute(server, f"CREATE ROLE gw LOGIN PASSWORD '{literal}'"))
        yield server


async def _execute(server: TcpPostgres, *statements: str) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.fixture(scope="module")
def pgbouncer(server: TcpPostgres) -> Generator[int]:
    with serve_pgbouncer(server) as port:
        yield port


@pytest.fixture(params=["public", "agents"])
async def urls(server: TcpPostgres, pgbouncer: int, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Yield the addresses of a migrated database through PgBouncer and without it."""
    name = f"pooled_{uuid4().hex}"
    await _execute(server, f"CREATE DATABASE {name} OWNER gw")
    schema = "" if request.param == "public" else f"?schema={request.param}"
    pooled, direct = (f"postgresql://gw:{ESCAPED}@127.0.0.1:{port}/{name}{schema}" for port in (pgbouncer, server.port))
    await asyncio.to_thread(migrations.upgrade_schema, direct)
    return pooled, direct


async def test_pooler_in_transaction_mode_is_refused_without_a_direct_url(server: TcpPostgres, pgbouncer: int) -> None:
    await _execute(server, "CREATE DATABASE refused OWNER gw")
    url = f"postgresql://gw:{ESCAPED}@127.0.0.1:{pgbouncer}/refused"
    with pytest.raises(
        ConfigError, match=r"^DATABASE_URL: postgresql://gw:\*\*\*@\S+ is a pooler .* DATABASE_DIRECT_URL"
    ):
        await wait_until_ready(url, 5)
    settings = load_settings(_env_file=None, database_url=url, database_direct_url=url)
    with pytest.raises(ConfigError, match=r"^DATABASE_DIRECT_URL: .* is a pooler"):
        await wait_for_addresses(settings.postgres_url or "", settings)


async def test_pooler_in_session_mode_needs_no_setting(server: TcpPostgres, tmp_path: Path) -> None:
    await _execute(server, "CREATE DATABASE sessions OWNER gw")
    with serve_pgbouncer(server, mode="session") as port:
        url = f"postgresql://gw:{ESCAPED}@127.0.0.1:{port}/sessions?schema=agents&work_mem=1MB"
        await wait_until_ready(url, 5)
        database = Database(url, pool_size=1)
        [[path, memory]] = await database.fetch_rows(
            "SELECT current_setting('search_path'), current_setting('work_mem')"
        )
        await database.close()
        assert (path, memory) == ("agents", "1MB")


async def test_turns_and_tasks_run_over_a_pooler_in_transaction_mode(
    urls: tuple[str, str], simulator: Simulator, tools_url: str
) -> None:
    settings = load_settings(_env_file=None, database_url=urls[0], database_direct_url=urls[1])
    assert settings.postgres_url is not None
    assert await wait_for_addresses(settings.postgres_url, settings) == settings.database_direct_url
    store = TaskStore(settings.postgres_url)
    added = await asyncio.gather(*(store.add_task("me", f"task {number}", "") for number in range(20)))
    assert {task.id for task in added} == set(range(1, 21))
    await store.close()
    async with serve_gateway(
        settings.postgres_url, simulator, tools_url, database_direct_url=settings.database_direct_url
    ) as gateway:
        await asyncio.gather(*(_chat_twice(gateway, number) for number in range(15)))
        assert (await gateway.get("/ready")).body["database"]["ok"] is True
        history = (await gateway.get("/api/v1/history?limit=50")).body
        assert len(history["items"]) == 30


async def _chat_twice(gateway: Gateway, number: int) -> None:
    first = await gateway.chat_stream(f"What is {number} + 1?")
    assert first.is_done, first.body
    conversation = first.get_event_data("turn.started")[0]["conversation_id"]
    second = await gateway.chat("And what did I ask?", conversation_id=conversation)
    assert second.status == 200, second.body


async def test_settings_of_a_transaction_stay_in_it(urls: tuple[str, str]) -> None:
    """A pooler's connections serve other programs afterwards."""
    settings = load_settings(_env_file=None, database_url=f"{urls[0]}", database_direct_url=urls[1])
    database = Database(settings.postgres_url or "", pool_size=3)
    [[limit]] = await database.fetch_rows("SELECT current_setting('statement_timeout')")
    await database.close()
    assert limit == "6s"
    other = await asyncpg.connect(urls[0].partition("?")[0], statement_cache_size=0)
    async with other.transaction():
        assert await other.fetchval("SELECT current_setting('statement_timeout')") == "0"
    await other.close()
