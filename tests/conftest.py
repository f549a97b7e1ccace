"""Fixtures with a real Postgres, simulated Groq, tool server and gateway."""

import asyncio
import functools
import inspect
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from uuid_utils import uuid4

from gateway.simulator import Simulator, SimulatorSettings, serve_simulator
from gateway.store import migrations
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn as dsn
from tests.shortcuts import install_shortcuts
from tests.stack import Gateway, ServeSharedGateway, serve_gateway, serve_tools

TESTS = Path(__file__).parent
NODE_TESTS = (
    "e2e/test_conformance.py",
    "e2e/test_host_authorization.py",
    "e2e/test_hosts.py",
    "e2e/test_inspector.py",
    "e2e/test_node_clients.py",
)
SLOW_TESTS = (
    "e2e/",
    "fuzz/",
    "gateway/api/test_contract.py",
    "gateway/store/test_migrations.py",
    "gateway/test_cli_keys.py",
    "gateway_runtime/test_embedded_postgres.py",
    "gateway_runtime/test_postgres_keeper.py",
    "tools_server/test_process.py",
    "upgrade/",
)
"""Tests that start processes or databases of their own."""
FAULT_TESTS = (
    "e2e/test_certificate_reload.py",
    "e2e/test_child_processes.py",
    "e2e/test_compose.py",
    "e2e/test_conversation_order.py",
    "e2e/test_data_directory.py",
    "e2e/test_deadly_turns.py",
    "e2e/test_examples.py",
    "e2e/test_full_disk.py",
    "e2e/test_leases.py",
    "e2e/test_mcp_sessions.py",
    "e2e/test_nginx.py",
    "e2e/test_random_uid.py",
    "e2e/test_serve.py",
    "e2e/test_serve_workers.py",
    "e2e/test_sources.py",
    "e2e/test_tls.py",
    "e2e/test_up.py",
    "e2e/test_workers.py",
    "fuzz/",
    "gateway/api/test_contract.py",
    "gateway/api/test_followers.py",
    "gateway/api/test_list_changes.py",
    "gateway/api/test_sampling.py",
    "gateway/api/test_server_tasks.py",
    "gateway/api/test_toolsets.py",
    "gateway/api/test_leases.py",
    "gateway/api/test_odd_authorization_servers.py",
    "gateway/api/test_refused_writes.py",
    "gateway/api/test_takeover.py",
    "gateway/api/test_token_issuers.py",
    "gateway/api/test_unusable_database.py",
    "gateway/api/test_conversation_order.py",
    "gateway/mcp_client/test_fault_lab.py",
    "gateway/mcp_client/test_grants_without_database.py",
    "gateway/mcp_client/test_idempotency_keys.py",
    "gateway/mcp_client/test_long_calls.py",
    "gateway/mcp_client/test_servers_that_stay.py",
    "gateway/store/test_connections.py",
    "gateway/test_bodies_of_peers.py",
    "gateway/test_silent_workers.py",
    "gateway_runtime/test_embedded_postgres.py",
    "gateway_runtime/test_postgres_keeper.py",
    "upgrade/",
)
"""Tests that break processes, databases or connections, or start whole deployments."""
SLOW_TIMEOUT_SECONDS = 240
_RESERVED_SECONDS = 10.0
"""Part of a test's time limit that is reserved for its fixtures."""
_MIN_FREE_MEMORY_BYTES = 6 * 1024**3
TEMPLATE = "template_gateway"
WITHOUT_DELAYS = SimulatorSettings(tokens_per_second=0, first_token_delay=0)
FAST_POSTGRES_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-shortcuts",
        action="store_true",
        help="run without the replacements of tests/shortcuts.py, which make tests faster",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, for the tiers of the Makefile."""
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)
        if path.startswith(NODE_TESTS):
            item.add_marker(pytest.mark.node)
        if path.startswith(FAULT_TESTS):
            item.add_marker(pytest.mark.faults)
        if path.startswith(SLOW_TESTS):
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Log tracebacks as the servers do, without values of variables.

    Their rendering takes seconds on a loaded machine.
    """
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session", autouse=True)
def use_shortcuts(request: pytest.FixtureRequest) -> Generator[None]:
    """Install the replacements of `tests.shortcuts`, unless `--no-shortcuts` is set."""
    if request.config.getoption("--no-shortcuts"):
        yield
        return
    with install_shortcuts():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """End a coroutine test before pytest-timeout would end the whole worker.

    The traceback then shows where the test waits; pytest-timeout's shows the event loop, and cannot stop it.
    """
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return
    marker = pyfuncitem.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker is not None else pyfuncitem.config.getini("timeout") or 0)
    if limit <= _RESERVED_SECONDS:
        return

    @functools.wraps(function)
    async def run_with_timeout(*arguments: Any, **options: Any) -> None:
        async with asyncio.timeout(limit - _RESERVED_SECONDS):
            await function(*arguments, **options)

    pyfuncitem.obj = run_with_timeout


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def postgres() -> Generator[embedded_postgres.EmbeddedPostgres]:
    """The embedded Postgres of the run, with a migrated template database."""
    with tempfile.TemporaryDirectory(prefix="agw-tests-", dir=_find_fast_directory()) as directory:
        Path(directory).chmod(0o755)
        server = embedded_postgres.start_or_attach(Path(directory), settings=FAST_POSTGRES_SETTINGS)
        try:
            asyncio.run(_execute(server.build_url("postgres"), f"CREATE DATABASE {TEMPLATE}"))
            migrations.upgrade_schema(server.build_url(TEMPLATE))
            yield server
        finally:
            server.stop_if_started_here()


def _find_fast_directory() -> str:
    """Return a directory in memory if there is enough of it.

    Each test copies a database.
    """
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > _MIN_FREE_MEMORY_BYTES else "/tmp"


@pytest.fixture
async def database_url(postgres: embedded_postgres.EmbeddedPostgres) -> AsyncGenerator[str]:
    """The SQLAlchemy URL of a new database, copied from the migrated template."""
    async with _create_database(postgres) as url:
        yield url


@asynccontextmanager
async def _create_database(postgres: embedded_postgres.EmbeddedPostgres) -> AsyncGenerator[str]:
    name = f"test_{uuid4().hex}"
    # FILE_COPY is faster than the default, which writes the pages to the log.
    await _execute(postgres.build_url("postgres"), f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    yield postgres.build_url(name)
    await _execute(postgres.build_url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(dsn(database_url))
    try:
        yield connection
    finally:
        await connection.close()


async def count_lock_waits(db: asyncpg.Connection, table: str | None = None) -> int:
    """Count the waits for locks, of a table or of all.

    In a transaction, pg_stat_activity shows no connections that are younger than its first look.
    """
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND ($1::text IS NULL OR relation = $1::regclass)"
    return await db.fetchval(waits, table)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def simulator() -> AsyncGenerator[Simulator]:
    """The simulated Groq without delays."""
    async with serve_simulator(WITHOUT_DELAYS) as running:
        yield running


@pytest.fixture
async def tools_url(database_url: str) -> AsyncGenerator[str]:
    """The tool server's MCP URL."""
    async with serve_tools(database_url) as address:
        yield address


@pytest.fixture
async def open_tools_url(database_url: str) -> AsyncGenerator[str]:
    """MCP URL of a tool server without tokens on this machine."""
    async with serve_tools(database_url, is_open=True) as address:
        yield address


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    """A gateway with simulator, tool server and database, over real HTTP."""
    async with serve_gateway(database_url, simulator, tools_url) as running:
        yield running


@pytest.fixture(scope="module")
async def serve_shared_gateway(postgres: embedded_postgres.EmbeddedPostgres) -> AsyncGenerator[ServeSharedGateway]:
    """Starts a gateway that all tests of a file share.

    The tests must not change its state.
    """
    async with AsyncExitStack() as stack:

        async def serve(**settings: Any) -> Gateway:
            url = await stack.enter_async_context(_create_database(postgres))
            simulator = await stack.enter_async_context(serve_simulator(WITHOUT_DELAYS))
            tools_url = await stack.enter_async_context(serve_tools(url))
            return await stack.enter_async_context(serve_gateway(url, simulator, tools_url, **settings))

        yield serve


@pytest.fixture(scope="module")
async def shared_gateway(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    """A shared gateway for requests that do not change it."""
    return await serve_shared_gateway()
