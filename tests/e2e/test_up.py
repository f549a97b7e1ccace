"""Tests of `agent-gateway up` and `serve` after a clone of the project.

Tests that do not stop the stack share one.
"""

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

from gateway.server import forked_workers
from tests.e2e.running_stack import (
    ROOT,
    START_SECONDS,
    RunningStack,
    clean_environment,
    find_free_port,
    gateway_command,
    run_stack,
)
from tests.eventually import eventually

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the stack's processes in /proc")


@contextmanager
def create_directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def directory() -> Generator[Path]:
    with create_directory() as path:
        yield path


class SharedStack(NamedTuple):
    """A stack that several tests share; its search engine sets the event."""

    stack: RunningStack
    search_requested: asyncio.Event


@pytest.fixture(scope="module")
async def shared_stack() -> AsyncGenerator[SharedStack]:
    with create_directory() as directory:
        search = {"SEARCH_BACKEND": "searxng", "SEARCH_TIMEOUT": "60"}
        async with (
            serve_hanging_search() as (url, search_requested),
            run_stack(directory, SEARXNG_URL=url, **search) as stack,
        ):
            yield SharedStack(stack, search_requested)


@asynccontextmanager
async def serve_hanging_search() -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """Serve a search engine that never answers its first request.

    Requests set the event.
    """
    requested = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        is_first = not requested.is_set()
        requested.set()
        if is_first:
            await asyncio.sleep(3600)
        return web.json_response(
            {"results": [{"title": "Cats", "url": "https://cats.example", "content": "All about cats."}]}
        )

    app = web.Application()
    app.router.add_get("/search", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}", requested
    finally:
        await runner.cleanup()


async def test_readme_walkthrough_calculates_stores_tasks_and_logs_turns(shared_stack: SharedStack) -> None:
    stack = shared_stack.stack
    output = stack.output.read_text()
    assert "simulated" in output
    assert f"curl -N {stack.base_url}/api/v1/chat/stream" in output

    reply = await stack.chat_stream("What is 23*19?")
    assert reply.get_event_data("tool.call")[0]["tool"] == "calculator"
    assert reply.get_event_data("tool.result")[0]["structured"]["result"] == 437
    assert "437" in reply.text
    assert reply.is_done
    await stack.chat("Add a task to buy milk")
    await stack.chat("Show my pending tasks and mark the first one done")
    assert await stack.query("SELECT title, status FROM tools.tasks") == [("buy milk", "completed")]
    prompts = [
        ("Show my pending tasks and mark the first one done",),
        ("Add a task to buy milk",),
        ("What is 23*19?",),
    ]
    assert (await stack.query("SELECT prompt FROM chat_logs ORDER BY id DESC"))[:3] == prompts

    command = gateway_command("chat", "What is 6*7?")
    single_prompt = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=90)
    assert single_prompt.returncode == 0, single_prompt.stderr
    assert "42" in single_prompt.stdout
    assert 'calculator {"expression": "6*7"}' in single_prompt.stderr
    conversation = subprocess.run(
        gateway_command("chat"),
        cwd=ROOT,
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=90,
        input="My name is Ada\nWhat is my name?\n",
    )
    assert "Your name is Ada." in conversation.stdout


async def test_tool_server_killed_during_a_call_recovers_without_gateway_restart(
    shared_stack: SharedStack,
) -> None:
    stack = shared_stack.stack
    gateway_before = stack.find_child("gateway.cli")
    chat = asyncio.create_task(stack.chat_stream("search the web for cats"))
    async with asyncio.timeout(30):
        await shared_stack.search_requested.wait()
    os.kill(stack.find_child("tools_server.cli"), signal.SIGKILL)
    reply = await chat
    result = reply.get_event_data("tool.result")[0]
    # The call is repeated, and a server that has already started again answers it.
    is_lost = "the MCP server 'tools'" in result["content"][0]["text"].replace("The", "the")
    assert is_lost == (result["outcome"] == "error")
    assert reply.get_event_data("turn.completed")
    await stack.wait_until_ready()
    next_reply = await stack.chat("What is 23*19?")
    assert next_reply.body["tool_calls"][0]["outcome"] == "ok"
    assert stack.find_child("gateway.cli") == gateway_before


async def test_disconnected_client_leaves_a_cancelled_turn_with_partial_text(shared_stack: SharedStack) -> None:
    stack = shared_stack.stack
    async with stack.stream("count to 5000") as stream:
        await stream.read_until("text.delta")
        stream.response.close()
    query = "SELECT status, response <> '', error->>'code' FROM turns WHERE prompt = 'count to 5000'"

    async def is_cancelled() -> bool:
        return await stack.query(query) == [("cancelled", True, "client_disconnected")]

    await eventually(is_cancelled)


async def test_killed_postgres_restarts_and_the_next_turn_is_stored(shared_stack: SharedStack) -> None:
    stack = shared_stack.stack
    await stack.chat("Hello")
    pid = int((stack.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(pid, signal.SIGKILL)

    async def is_answered() -> bool:
        return (await stack.chat("Hello again")).status == 200

    await eventually(is_answered)
    prompts = [row[0] for row in await stack.query("SELECT prompt FROM turns WHERE status = 'completed'")]
    assert "Hello" in prompts
    assert "Hello again" in prompts
    await stack.wait_until_ready()


@pytest.mark.parametrize("target", ["supervisor", "group", "gateway"])
async def test_sigterm_closes_the_stream_and_leaves_the_turn_resumable(directory: Path, target: str) -> None:
    async with run_stack(directory, SHUTDOWN_GRACE_SECONDS="1") as stack:
        pids = stack.find_descendants()
        async with stack.stream("count to 5000") as stream:
            await stream.read_until("text.delta")
            match target:
                case "supervisor":
                    stack.process.terminate()
                case "group":
                    os.killpg(stack.process.pid, signal.SIGINT)
                case _:
                    os.kill(stack.find_child("gateway.cli"), signal.SIGTERM)
            closing = await stream.read_until("stream.closing")
            assert closing.data["reason"] == "server_stopping"
        assert await stack.wait_for_exit() == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        # The turn is still running, and the next start or another worker resumes it.
        query = "SELECT turns.status, workers.id FROM turns LEFT JOIN workers ON workers.id = turns.worker_id"
        assert await stack.query(query) == [("running", None)]


async def test_killed_supervisor_leaves_no_child_process(directory: Path) -> None:
    async with run_stack(directory, WEB_CONCURRENCY="2") as stack:
        pids = stack.find_descendants()
        # Two workers, the tool server, the simulated Groq, Postgres, and what forks the workers.
        assert len(pids) == 5 + forked_workers.IS_SUPPORTED
        stack.process.kill()
        await eventually(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


async def test_stack_outlives_the_reader_of_its_output(directory: Path) -> None:
    port = find_free_port()
    environment = clean_environment(
        GATEWAY_PORT=str(port), TOOLS_SERVER_PORT=str(find_free_port()), GATEWAY_DATA_DIR=str(directory)
    )
    process = subprocess.Popen(
        gateway_command("up"), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.close()  # as `head` does after its last line
    try:
        output = Path(f"/proc/{process.pid}/fd/1")
        # It is redirected when the report on the start cannot be written.
        await eventually(lambda: str(output.readlink()) == os.devnull, timeout_seconds=START_SECONDS)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/ready") as response:
            assert (await response.json())["status"] == "ready"
    finally:
        process.terminate()
    assert process.wait(30) == 0


def run_to_exit(*arguments: str, **settings: str) -> tuple[int, str]:
    """Run a command to its end; return exit code and error output."""
    process = subprocess.run(
        gateway_command(*arguments),
        cwd=ROOT,
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=90,
    )
    return process.returncode, process.stderr


def test_port_in_use_is_a_one_line_error(directory: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name in ("GATEWAY_PORT", "TOOLS_SERVER_PORT"):
            ports = {"GATEWAY_PORT": str(find_free_port()), "TOOLS_SERVER_PORT": str(find_free_port())} | {name: port}
            code, errors = run_to_exit("up", GATEWAY_DATA_DIR=str(directory), **ports)
            assert code == 2
            assert errors == f"{name}: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_unreachable_database_is_a_one_line_error_without_password(directory: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:9/none"
    for name in ("up", "serve"):
        code, errors = run_to_exit(
            name, DATABASE_URL=url, DATABASE_WAIT_SECONDS="0", GATEWAY_PORT=str(find_free_port())
        )
        assert code == 2
        assert errors.count("\n") == 1
        assert errors.startswith("DATABASE_URL: postgresql://me:***@127.0.0.1:9/none cannot be reached")
        assert "hunter2" not in errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GATEWAY_PORT": "lots"}, "GATEWAY_PORT: Input should be a valid integer"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: must be a PostgreSQL URL"),
        ({"GROQ_TEMPERATURE": "9"}, "GROQ_TEMPERATURE: Input should be less than or equal to 2"),
        (
            {"HEARTBEAT_SECONDS": "3", "HEARTBEAT_TIMEOUT_SECONDS": "5.9"},
            "HEARTBEAT_TIMEOUT_SECONDS: must be at least 6, twice HEARTBEAT_SECONDS",
        ),
        ({"GATEWAY_HOST": "0.0.0.0"}, "GATEWAY_HOST: 0.0.0.0 can be reached from other machines"),
        (
            {"GATEWAY_TLS_CERT_FILE": "/no/such.pem", "GATEWAY_TLS_KEY_FILE": "/no/such-key.pem"},
            "GATEWAY_TLS_CERT_FILE: cannot read /no/such.pem: No such file or directory",
        ),
        ({"MCP_CONFIG": "/no/such/file.json"}, "MCP_CONFIG: cannot read /no/such/file.json"),
    ],
)
def test_invalid_setting_is_a_one_line_error(directory: Path, settings: dict[str, str], message: str) -> None:
    code, errors = run_to_exit(
        "serve", **{"GATEWAY_DATA_DIR": str(directory), "GATEWAY_PORT": str(find_free_port()), **settings}
    )
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert errors.startswith(message)


def test_invalid_env_file_is_an_error(directory: Path) -> None:
    (directory / ".env").write_text("GATEWAY_PORT=eighty\n")
    process = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "up"],
        cwd=directory,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("GATEWAY_PORT: Input should be a valid integer")


async def test_serve_without_settings_starts_database_and_simulated_model(directory: Path) -> None:
    port = find_free_port()
    environment = clean_environment(GATEWAY_DATA_DIR=str(directory), GATEWAY_PORT=str(port))
    process = subprocess.Popen(gateway_command("serve"), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        async with aiohttp.ClientSession() as session:

            async def read_status() -> dict[str, Any] | None:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/ready") as response:
                        return dict(await response.json())
                except aiohttp.ClientConnectionError:
                    return None

            assert (await eventually(read_status, timeout_seconds=START_SECONDS))["simulated"] is True  # type: ignore[index]
    finally:
        process.terminate()
        assert process.wait(30) == 0
