"""Tests of `gateway.app:app` under ASGI servers that people start themselves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.running_stack import ROOT, START_SECONDS, RunningStack, clean_environment, find_free_port
from tests.e2e.test_up import create_directory
from tests.eventually import eventually

pytestmark = pytest.mark.faults
UVICORN = ("uvicorn", "gateway.app:app")
GUNICORN = ("gunicorn", "--workers", "2", "-k", "uvicorn.workers.UvicornWorker", "gateway.app:app")
STOP_SECONDS = 20.0


def start(directory: Path, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
    """Start a server in an empty directory, with a log file."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = clean_environment(PYTHONPATH=path, GATEWAY_DATA_DIR=str(directory / "data"), **settings)
    with (directory / "output").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=directory, env=environment, stdout=out, stderr=subprocess.STDOUT
        )


async def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and its Postgres, which outlives a killed server."""
    if process.poll() is None:
        process.terminate()
        await eventually(lambda: process.poll() is not None, timeout_seconds=START_SECONDS)


@asynccontextmanager
async def run_server(directory: Path, *arguments: str, **settings: str) -> AsyncGenerator[RunningStack]:
    """Run a server from readiness to the block's end."""
    port = find_free_port()
    address = ("--bind", f"127.0.0.1:{port}") if arguments[0] == "gunicorn" else ("--port", str(port))
    process = start(directory, *arguments, *address, **settings)
    output = directory / "output"
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            url = f"http://127.0.0.1:{port}"
            running = RunningStack(url, session, process, directory / "data", 0, dict(os.environ), output)

            async def is_ready() -> bool:
                assert process.poll() is None, output.read_text()
                try:
                    return (await running.get("/ready")).body["status"] == "ready"
                except aiohttp.ClientError:
                    return False

            await eventually(is_ready, timeout_seconds=START_SECONDS)
            yield running
    finally:
        await stop(process)


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=lambda command: command[0])
async def test_server_runs_the_gateway_with_nothing_configured(command: tuple[str, ...]) -> None:
    if command is GUNICORN:
        pytest.importorskip("gunicorn")
    with create_directory() as directory:
        async with run_server(directory, *command) as running:
            reply = await running.chat("What is a camel?")
            assert (reply.status, "simulated" in reply.body["response"]) == (200, True)
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_SECONDS):
                await running.wait_for_exit()
            assert await running.query("SELECT prompt FROM chat_logs") == [("What is a camel?",)]
            output = running.output.read_text()
        assert "Traceback" not in output
        assert f"127.0.0.1:{running.base_url.rpartition(':')[2]}" in output  # the server's own line


async def test_open_stream_does_not_delay_the_stop_of_the_server() -> None:
    """A stop event comes after open requests in uvicorn."""
    with create_directory() as directory:
        async with run_server(directory, *UVICORN) as running, running.stream("count to 5000") as stream:
            await stream.read_until("text.delta")
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_SECONDS):
                await stream.read_until("stream.closing")
                await running.wait_for_exit()


async def test_client_that_disconnects_cancels_its_turn() -> None:
    """The server reports it only to an application that receives."""
    with create_directory() as directory:
        async with run_server(directory, *UVICORN) as running:

            async def list_turns() -> dict[str, str]:
                return dict(await running.query("SELECT prompt, status FROM turns"))

            chat = asyncio.create_task(running.chat("count to 6000"))
            await eventually(list_turns)
            chat.cancel()
            async with running.stream("count to 5000") as stream:
                await stream.read_until("text.delta")
                stream.response.close()

            async def are_cancelled() -> bool:
                return await list_turns() == {"count to 6000": "cancelled", "count to 5000": "cancelled"}

            await eventually(are_cancelled)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"DATABASE_URL": "postgresql://gateway@127.0.0.1:9/none"}, "127.0.0.1:9"),
        ({"GATEWAY_PORT": "eighty"}, "GATEWAY_PORT: "),
        ({"MCP_CONFIG": "nothing.json"}, "MCP_CONFIG: "),
    ],
)
def test_configuration_that_cannot_be_used_is_one_line_of_the_server(settings: dict[str, str], problem: str) -> None:
    with create_directory() as directory:
        process = start(directory, *UVICORN, "--port", str(find_free_port()), **settings)
        assert process.wait(START_SECONDS) != 0
        output = (directory / "output").read_text()
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if problem in line]) == 1, output


async def test_caller_of_an_unknown_address_needs_a_credential() -> None:
    """An application cannot know where its server listens."""
    with create_directory() as directory:
        process = start(directory, *UVICORN, "--uds", str(directory / "socket"))
        try:
            await eventually((directory / "socket").exists, timeout_seconds=START_SECONDS)
            connector = aiohttp.UnixConnector(str(directory / "socket"))
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
                async with session.get("http://localhost/health") as response:
                    assert response.status == 200
                async with session.get("http://localhost/api/v1/models") as response:
                    assert response.status == 403
                    assert "API_KEY" in (await response.json())["error"]["message"]
        finally:
            await stop(process)


def test_import_reads_no_settings_and_starts_nothing() -> None:
    code = "import json, threading, gateway.app; print(json.dumps([threading.active_count(), str(gateway.app.app)]))"
    with create_directory() as directory:
        environment = clean_environment(PYTHONPATH=str(ROOT), GATEWAY_PORT="eighty", PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0] == 1
        assert list(directory.iterdir()) == []
