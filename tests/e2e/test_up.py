"""What a user sees who clones the project and runs it. What does not end the stack is tried on the same one."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.up import ROOT, START_SECONDS, Up, clean_environment, command, free_port, running_up
from tests.eventually import eventually

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the stack's processes in /proc")


@contextmanager
def own_directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def directory() -> Generator[Path]:
    with own_directory() as path:
        yield path


class Running(NamedTuple):
    """The stack that several tests share, and the event of its search engine, which never answers."""

    up: Up
    searched: asyncio.Event


@pytest.fixture(scope="module")
async def running() -> AsyncGenerator[Running]:
    with own_directory() as directory:
        search = {"SEARCH_BACKEND": "searxng", "SEARCH_TIMEOUT": "60"}
        async with hanging_search() as (url, searched), running_up(directory, SEARXNG_URL=url, **search) as up:
            yield Running(up, searched)


@asynccontextmanager
async def hanging_search() -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """A search engine that takes the question and never answers."""
    asked = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(3600)
        return web.Response()

    app = web.Application()
    app.router.add_get("/search", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        await runner.cleanup()


async def test_readme_walkthrough_calculates_stores_tasks_and_logs_turns(running: Running) -> None:
    up = running.up
    said = up.output.read_text()
    assert "simulated" in said
    assert f"curl -N {up.base_url}/api/v1/chat/stream" in said

    reply = await up.chat_stream("What is 23*19?")
    assert reply.of("tool.call")[0]["tool"] == "calculator"
    assert reply.of("tool.result")[0]["structured"]["result"] == 437
    assert "437" in reply.text
    assert reply.done
    await up.chat("Add a task to buy milk")
    await up.chat("Show my pending tasks and mark the first one done")
    assert await up.rows("SELECT title, status FROM tools.tasks") == [("buy milk", "completed")]
    walked = [
        ("Show my pending tasks and mark the first one done",),
        ("Add a task to buy milk",),
        ("What is 23*19?",),
    ]
    assert (await up.rows("SELECT prompt FROM chat_logs ORDER BY id DESC"))[:3] == walked

    asking = [*command("chat", "What is 6*7?")]
    spoken = subprocess.run(asking, cwd=ROOT, env=up.environment, capture_output=True, text=True, timeout=90)
    assert spoken.returncode == 0, spoken.stderr
    assert "42" in spoken.stdout
    assert 'calculator {"expression": "6*7"}' in spoken.stderr
    talked = subprocess.run(
        command("chat"), cwd=ROOT, env=up.environment, capture_output=True, text=True, timeout=90,
        input="My name is Ada\nWhat is my name?\n",
    )  # fmt: skip
    assert "Your name is Ada." in talked.stdout


async def test_tool_server_killed_during_a_call_recovers_without_gateway_restart(
    running: Running,
) -> None:
    up = running.up
    gateway_before = up.child("gateway.cli")
    asking = asyncio.create_task(up.chat_stream("search the web for cats"))
    async with asyncio.timeout(30):
        await running.searched.wait()
    os.kill(up.child("tools_server.cli"), signal.SIGKILL)
    reply = await asking
    result = reply.of("tool.result")[0]
    assert result["outcome"] == "error"
    assert "the MCP server 'tools'" in result["content"][0]["text"].replace("The", "the")
    assert reply.of("turn.completed")
    await up.until_ready()
    again = await up.chat("What is 23*19?")
    assert again.body["tool_calls"][0]["outcome"] == "ok"
    assert up.child("gateway.cli") == gateway_before


async def test_disconnected_client_leaves_a_cancelled_turn_with_partial_text(running: Running) -> None:
    up = running.up
    async with up.stream("count to 5000") as stream:
        await stream.until("text.delta")
        stream.response.close()
    query = "SELECT status, response <> '', error->>'code' FROM turns WHERE prompt = 'count to 5000'"

    async def cancelled() -> bool:
        return await up.rows(query) == [("cancelled", True, "client_disconnected")]

    await eventually(cancelled)


async def test_killed_postgres_restarts_and_the_next_turn_is_stored(running: Running) -> None:
    up = running.up
    await up.chat("Hello")
    pid = int((up.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(pid, signal.SIGKILL)

    async def answered() -> bool:
        return (await up.chat("Hello again")).status == 200

    await eventually(answered)
    prompts = [row[0] for row in await up.rows("SELECT prompt FROM turns WHERE status = 'completed'")]
    assert "Hello" in prompts
    assert "Hello again" in prompts
    await up.until_ready()


@pytest.mark.parametrize("whom", ["supervisor", "group", "gateway"])
async def test_sigterm_closes_the_stream_and_leaves_the_turn_resumable(directory: Path, whom: str) -> None:
    async with running_up(directory, SHUTDOWN_GRACE_SECONDS="1") as up:
        pids = up.descendants()
        async with up.stream("count to 5000") as stream:
            await stream.until("text.delta")
            match whom:
                case "supervisor":
                    up.process.terminate()
                case "group":
                    os.killpg(up.process.pid, signal.SIGINT)
                case _:
                    os.kill(up.child("gateway.cli"), signal.SIGTERM)
            closing = await stream.until("stream.closing")
            assert closing.data["reason"] == "server_stopping"
        assert await up.until_gone() == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        # Neither ended nor lost: the next start, or another worker, goes on with it.
        assert await up.rows("SELECT status, worker_id FROM turns") == [("running", None)]


async def test_killed_supervisor_leaves_no_child_process(directory: Path) -> None:
    async with running_up(directory, WEB_CONCURRENCY="2") as up:
        pids = up.descendants()
        assert len(pids) == 5  # two workers, the tool server, the simulated Groq, Postgres
        up.process.kill()
        await eventually(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def fails(*arguments: str, **settings: str) -> tuple[int, str]:
    """The exit code and what was said of a command that ends by itself."""
    ended = subprocess.run(
        command(*arguments), cwd=ROOT, env=clean_environment(**settings), capture_output=True, text=True, timeout=90
    )
    return ended.returncode, ended.stderr


def test_port_in_use_is_a_one_line_error(directory: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name in ("GATEWAY_PORT", "TOOLS_SERVER_PORT"):
            ports = {"GATEWAY_PORT": str(free_port()), "TOOLS_SERVER_PORT": str(free_port())} | {name: port}
            code, said = fails("up", GATEWAY_DATA_DIR=str(directory), **ports)
            assert code == 2
            assert said == f"{name}: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_unreachable_database_is_a_one_line_error_without_password(directory: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:9/none"
    for name in ("up", "serve"):
        code, said = fails(name, DATABASE_URL=url, DATABASE_WAIT_SECONDS="0", GATEWAY_PORT=str(free_port()))
        assert code == 2
        assert said.count("\n") == 1
        assert said.startswith("DATABASE_URL: postgresql+asyncpg://me:***@127.0.0.1:9/none cannot be reached")
        assert "hunter2" not in said


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"GATEWAY_PORT": "lots"}, "GATEWAY_PORT: Input should be a valid integer"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: must be a PostgreSQL URL"),
        ({"GROQ_TEMPERATURE": "9"}, "GROQ_TEMPERATURE: Input should be less than or equal to 2"),
        ({"GATEWAY_HOST": "0.0.0.0"}, "GATEWAY_HOST: 0.0.0.0 can be reached from other machines"),
        (
            {"GATEWAY_TLS_CERT_FILE": "/no/such.pem", "GATEWAY_TLS_KEY_FILE": "/no/such-key.pem"},
            "GATEWAY_TLS_CERT_FILE: cannot read /no/such.pem: No such file or directory",
        ),
        ({"MCP_CONFIG": "/no/such/file.json"}, "MCP_CONFIG: cannot read /no/such/file.json"),
    ],
)
def test_invalid_setting_is_a_one_line_error(directory: Path, settings: dict[str, str], line: str) -> None:
    code, said = fails("serve", **{"GATEWAY_DATA_DIR": str(directory), "GATEWAY_PORT": str(free_port()), **settings})
    assert code == 2, said
    assert said.count("\n") == 1, said
    assert said.startswith(line)


def test_invalid_env_file_is_an_error(directory: Path) -> None:
    (directory / ".env").write_text("GATEWAY_PORT=eighty\n")
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "up"], cwd=directory, env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("GATEWAY_PORT: Input should be a valid integer")


async def test_serve_without_settings_starts_database_and_simulated_model(directory: Path) -> None:
    port = free_port()
    environment = clean_environment(GATEWAY_DATA_DIR=str(directory), GATEWAY_PORT=str(port))
    process = subprocess.Popen(command("serve"), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        async with aiohttp.ClientSession() as session:

            async def ready() -> dict[str, Any] | None:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/ready") as response:
                        return dict(await response.json())
                except aiohttp.ClientConnectionError:
                    return None

            assert (await eventually(ready, timeout_seconds=START_SECONDS))["simulated"] is True  # type: ignore[index]
    finally:
        process.terminate()
        assert process.wait(30) == 0
