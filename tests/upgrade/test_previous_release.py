"""Workers of two releases on one database, under load."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aiohttp
import asyncpg
import pytest
from uuid_utils import uuid4

from gateway.store import migrations
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from tests.conftest import dsn
from tests.e2e.cluster import Worker, run_process
from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment
from tests.e2e.test_workers import check_turns, start_turn
from tests.eventually import eventually
from tests.stack import SECRET, find_free_port

PREVIOUS = ROOT / ".upgrade"
TURNS = 20
TASKS = TURNS // 5
Release = Literal["previous", "current"]
INTERPRETERS = {"previous": str(PREVIOUS / "venv" / "bin" / "python"), "current": sys.executable}
DIRECTORIES: dict[Release, Path] = {"previous": PREVIOUS / "source", "current": ROOT}
pytestmark = pytest.mark.skipif(
    not (PREVIOUS / "installed").exists(), reason="the previous release is not installed: run `make previous-release`"
)


@pytest.fixture
async def database_url(postgres: EmbeddedPostgres) -> AsyncGenerator[str]:
    """A new database with the schema of the previous release."""
    admin = await asyncpg.connect(dsn(postgres.build_url("postgres")))
    name = f"upgrade_{uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    url = postgres.build_url(name)
    environment = clean_environment(DATABASE_URL=url, PYTHONPATH="")
    command = (INTERPRETERS["previous"], "-m", "gateway.cli", "db", "upgrade")
    process = await asyncio.create_subprocess_exec(*command, cwd=DIRECTORIES["previous"], env=environment)
    assert await process.wait() == 0
    yield url
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


class MixedCluster:
    """Starts workers of both releases on the same servers."""

    def __init__(self, database_url: str, groq: str, tools: str, session: aiohttp.ClientSession) -> None:
        self._settings = {
            "DATABASE_URL": database_url,
            "MIGRATE_ON_START": "true",
            "GROQ_API_KEY": "simulated",
            "GROQ_BASE_URL": groq,
            "RATE_LIMIT_ENABLED": "false",
            "HEARTBEAT_SECONDS": "1",
            "MCP_SERVER_URL": tools,
            "TOOLS_SERVER_SECRET": SECRET,
            "LOG_LEVEL": "ERROR",
            "PYTHONPATH": "",
        }
        self._session = session

    @asynccontextmanager
    async def run_worker(self, release: Release) -> AsyncGenerator[Worker]:
        port = find_free_port()
        base_url = f"http://127.0.0.1:{port}"
        settings = clean_environment(**self._settings, GATEWAY_PORT=str(port))
        command = [INTERPRETERS[release], "-m", "gateway.cli", "serve"]
        process = subprocess.Popen(command, cwd=DIRECTORIES[release], env=settings)

        async def is_serving() -> bool:
            try:
                async with self._session.get(f"{base_url}/health"):
                    return True
            except aiohttp.ClientConnectionError:
                assert process.poll() is None, f"the {release} release does not start"
                return False

        try:
            await eventually(is_serving, timeout_seconds=START_SECONDS)
            yield Worker(base_url, self._session, process)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
async def cluster(database_url: str) -> AsyncGenerator[MixedCluster]:
    groq, tools = find_free_port(), find_free_port()
    simulator = [sys.executable, "-m", "gateway.simulator", "--port", str(groq), "--tokens-per-second", "100"]
    server = [sys.executable, "-m", "tools_server.cli"]
    settings = {"DATABASE_URL": database_url, "TOOLS_SERVER_SECRET": SECRET, "TOOLS_SERVER_PORT": str(tools)}
    # Without reuse: the server may close an idle connection at the moment of the next request.
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=150)) as session,
        run_process(simulator, f"http://127.0.0.1:{groq}/", session),
        run_process(server, f"http://127.0.0.1:{tools}/health", session, **settings),
    ):
        yield MixedCluster(database_url, f"http://127.0.0.1:{groq}", f"http://127.0.0.1:{tools}/mcp", session)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize(("first", "second"), [("previous", "current"), ("current", "previous")])
async def test_turns_of_one_release_are_completed_by_the_other(
    cluster: MixedCluster, db: asyncpg.Connection, first: Release, second: Release, end: signal.Signals
) -> None:
    async with cluster.run_worker(first) as leaving:
        before = await asyncio.gather(*(start_turn(leaving, number) for number in range(TURNS)))
        async with cluster.run_worker(second) as coming:  # migrates the schema if it is the newer one
            during = await asyncio.gather(*(start_turn(leaving, number) for number in range(TURNS)))
            leaving.process.send_signal(end)
            after = await asyncio.gather(*(start_turn(coming, number) for number in range(TURNS)))
            await check_turns(coming, db, [*before, *during, *after])
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 3 * TASKS  # each task was added once


async def test_conversation_keeps_its_order_across_releases(cluster: MixedCluster) -> None:
    async with cluster.run_worker("previous") as old, cluster.run_worker("current") as new:
        first = await old.chat("Hello there", conversation_id="new")
        conversation_id = first.body["conversation_id"]
        prompts = ["Hello there"]
        for number, worker in enumerate((new, old, new, old)):
            prompts.append(f"Say the number {number}")
            assert (await worker.chat(prompts[-1], conversation_id=conversation_id)).status == 200
        for worker in (old, new):
            conversation = await worker.get(f"/api/v1/conversations/{conversation_id}")
            assert [turn["prompt"] for turn in conversation.body["turns"]] == prompts


async def test_previous_release_starts_on_the_new_schema(
    cluster: MixedCluster, database_url: str, db: asyncpg.Connection
) -> None:
    await asyncio.to_thread(migrations.upgrade_schema, database_url)
    assert await migrations.list_missing_migrations(database_url) == []
    async with cluster.run_worker("previous") as old:
        reply = await old.chat("What is 23*19?")
        assert "437" in reply.body["response"]
        assert [hit["prompt"] for hit in (await old.get("/api/v1/search?query=23")).body["items"]] == ["What is 23*19?"]
        assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 1
