import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from tests.eventually import eventually
from tests.tools_server.conftest import (
    ERAS,
    NO_DATABASE,
    ROOT,
    Ended,
    connect,
    environment,
    run_tools_server,
    serve_web,
    text_of,
)

pytestmark = pytest.mark.faults


def stdio(**values: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable, args=["-m", "tools_server.cli", "--stdio"], env=environment(**values), cwd=ROOT
    )


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A short directory that an embedded Postgres's user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="agw-tools-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("era", ERAS)
async def test_over_stdio_the_user_is_local(database_url: str, era: str) -> None:
    async with Client(stdio(DATABASE_URL=database_url), mode=era) as client:  # pyright: ignore[reportArgumentType]
        assert text_of(await client.call_tool("calculator", {"expression": "5*9"})) == "5*9 = 45"
        assert text_of(await client.call_tool("add_task", {"title": "buy milk"})) == "Added task #1: buy milk"
        assert text_of(await client.call_tool("list_tasks", {})) == "#1 [pending] buy milk"


async def test_stdio_alone_brings_its_own_database(short_directory: Path) -> None:
    settings = {"DATABASE_URL": "", "GATEWAY_DATA_DIR": str(short_directory)}
    for expected in ("Added task #1: first", "Added task #2: second"):
        async with Client(stdio(**settings), read_timeout_seconds=30) as client:
            title = expected.split(": ")[1]
            assert await eventually(partial(add_task, client, title)) == expected


async def test_killed_database_of_its_own_is_started_again(short_directory: Path) -> None:
    settings = {"DATABASE_URL": "", "GATEWAY_DATA_DIR": str(short_directory)}
    async with Client(stdio(**settings), read_timeout_seconds=30) as client:
        assert await eventually(partial(add_task, client, "first")) == "Added task #1: first"
        pid_file = short_directory / "postgres" / "postmaster.pid"
        killed = pid_file.read_text().split("\n")[0]
        os.kill(int(killed), signal.SIGKILL)

        def has_successor() -> bool:
            try:
                return pid_file.read_text().split("\n")[0] not in ("", killed)
            except FileNotFoundError:  # it starts
                return False

        await eventually(has_successor)
        await eventually(partial(add_task, client, "second"))
        assert "first" in text_of(await client.call_tool("list_tasks", {}))


async def add_task(client: Client, title: str) -> str | None:
    """Return the tool's text, or None without a migrated schema.

    The schema is migrated after the server starts to serve.
    """
    added = await client.call_tool("add_task", {"title": title})
    return None if added.is_error else text_of(added)


def test_over_stdio_nothing_but_the_protocol_is_written_to_standard_output() -> None:
    asked = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tools_server.cli", "--stdio"],
        input=json.dumps(asked) + "\n",
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env=environment(DEBUG="true"),
        check=True,
    )
    [line] = ended.stdout.splitlines()
    assert json.loads(line)["result"]["protocolVersion"] == "2025-06-18"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_stdio_too(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools_server.cli",
        "--stdio",
        cwd=ROOT,
        env=environment(DATABASE_URL=NO_DATABASE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    async with asyncio.timeout(90):  # it imports much before it answers
        await process.stdout.readline()
        process.send_signal(number)
        assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_server_without_an_error(number: signal.Signals) -> None:
    async with run_tools_server() as server:
        await server.ready()
        assert_stopped_without_error(await server.end(number))


@pytest.mark.parametrize("era", ERAS)
async def test_open_streams_do_not_hold_up_the_end(era: str) -> None:
    async with run_tools_server() as server:
        await server.ready()
        async with connect(server.address, era) as client:
            if era == "legacy":  # its shared_gateway GET stream opens by itself
                await client.call_tool("calculator", {"expression": "1"})
                assert_stopped_without_error(await server.end())
                return
            async with client.listen(tools_list_changed=True) as changes:
                assert_stopped_without_error(await server.end())
                assert [change async for change in changes] == []  # the stream ends without an error


async def test_running_call_does_not_hold_up_the_end() -> None:
    asked = asyncio.Event()

    async def never(_request: object) -> None:
        asked.set()
        await asyncio.sleep(600)

    async with (
        serve_web(never) as engine,  # type: ignore[arg-type]
        run_tools_server(SEARCH_BACKEND="searxng", SEARXNG_URL=engine, SEARCH_TIMEOUT="60") as server,
    ):
        await server.ready()
        async with connect(server.address, "auto") as client:
            call = asyncio.create_task(client.call_tool("web_search", {"query": "x"}))
            async with asyncio.timeout(30):
                await asked.wait()
            assert_stopped_without_error(await server.end())
            await asyncio.wait([call], timeout=30)
            call.cancel()


async def test_it_ends_with_whoever_holds_its_lifeline() -> None:
    async with run_tools_server(GATEWAY_LIFELINE="stdin") as server:
        await server.ready()
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert_stopped_without_error(await server.end(by=None))


async def test_without_a_lifeline_standard_input_means_nothing() -> None:
    async with run_tools_server() as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        await server.ready()
        assert_stopped_without_error(await server.end())


def assert_stopped_without_error(ended: Ended) -> None:
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr


async def test_taken_port_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with run_tools_server(TOOLS_SERVER_PORT=port) as server:
            ended = await server.end(by=None)
    assert ended.code == 2
    assert ended.stderr == f"TOOLS_SERVER_PORT: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOOLS_SERVER_PORT", "eighty"),
        ("TOOLS_SERVER_HOST", "no-such-host.invalid"),
        ("TOOLS_SERVER_HOST", "203.0.113.1"),
        ("DATABASE_URL", "sqlite://"),
        ("GATEWAY_DATA_DIR", "/dev/null/data"),
    ],
)
async def test_broken_setting_is_one_line_and_exit_code_2(name: str, value: str) -> None:
    more = {"DATABASE_URL": ""} if name == "GATEWAY_DATA_DIR" else {}
    async with run_tools_server(**{**more, name: value}) as server:
        ended = await server.end(by=None)
    assert ended.code == 2
    assert ended.stderr.startswith(f"{name}: ")
    assert ended.stderr.count("\n") == 1


async def test_tracebacks_and_libraries_show_no_values_in_the_log() -> None:
    script = (
        "import logging; from tools_server.log import configure_logging; configure_logging(json=JSON, level='DEBUG')\n"
        "logging.getLogger('library').debug('buy milk'); logging.getLogger('tools_server.x').debug('own line')\n"
        "def fail(title): raise RuntimeError('broken')\n"
        "try: fail('buy ' + 'milk')\n"
        "except RuntimeError: logging.getLogger('x').exception('it failed')\n"
    )
    for json_logs in ("True", "False"):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script.replace("JSON", json_logs),
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        assert stdout == b""
        assert b"RuntimeError" in stderr
        assert b"own line" in stderr
        assert b"buy milk" not in stderr
