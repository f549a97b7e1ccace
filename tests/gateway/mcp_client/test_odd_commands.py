"""Tests of commands that misbehave or install packages."""

import asyncio
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.common.concurrency import Backoff
from gateway.mcp_client.connection import connection, session
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.stdio import output_log, process
from gateway.mcp_client.stdio.lines import EndlessLine, LineSplitter
from gateway.mcp_client.stdio.output_log import OutputLog
from gateway.mcp_client.stdio.process import is_package_runner
from gateway.mcp_client.toolbox import McpToolbox
from tests.eventually import eventually
from tests.gateway.mcp_client.test_toolbox import call_tool, connect_toolbox, get_text

PROGRAM = str(Path(__file__).with_name("odd_command.py"))
KIB = 1024


def make_command(*oddities: str, name: str = "odd", **options: Any) -> ServerConfig:
    options.setdefault("env", {})
    return ServerConfig(name=name, command=sys.executable, args=("-S", "-E", PROGRAM, *oddities), prefix="", **options)


def get_status(toolbox: McpToolbox) -> tuple[str, str | None]:
    status = toolbox.list_server_statuses()[0]
    return status.state, status.reason


def read_pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_alive(group: int) -> bool:
    """Return whether a group has members besides those that nobody has reaped."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, entry_group = entry.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(entry_group) == group and state != "Z":
            return True
    return False


def read_environment_of_guard(group: int) -> bytes | None:
    """Return the environment of the guard of a process group."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
            if any(argument.endswith(b"install_guard.py") for argument in arguments) and b"%d" % group in arguments:
                return entry.with_name("environ").read_bytes()
        except OSError:
            continue
    return None


async def test_odd_output_fails_only_its_own_call() -> None:
    async with connect_toolbox(make_command(), mcp_max_message_bytes=64 * KIB) as toolbox:
        # Calls of tools that may ask run one at a time, and the first answer shows that this one does not.
        assert get_text(await call_tool(toolbox, "hang")) == "café hang"
        hanging_call = asyncio.create_task(call_tool(toolbox, "hang"))
        latin = await call_tool(toolbox, "latin")
        assert (latin.outcome, get_text(latin)) == ("ok", "caf\ufffd latin")
        broken = await call_tool(toolbox, "broken")
        assert (broken.outcome, "cannot be read" in get_text(broken)) == ("unknown", True)
        long = await call_tool(toolbox, "long")
        assert (long.outcome, "too large" in get_text(long)) == ("error", True)
        assert get_text(await call_tool(toolbox, "chatter")) == "café chatter"
        assert get_text(await call_tool(toolbox, "fine")) == "café fine"
        assert not hanging_call.done()
        assert get_status(toolbox) == ("up", None)
        hanging_call.cancel()


async def test_line_without_an_end_ends_its_server_and_delays_no_other() -> None:
    endless = make_command()
    fine = make_command(name="fine").model_copy(update={"prefix": "good"})
    with capture_logs() as logs:
        async with connect_toolbox(endless, fine, mcp_max_message_bytes=64 * KIB) as toolbox:
            call = asyncio.create_task(call_tool(toolbox, "endless"))
            assert get_text(await call_tool(toolbox, "good_fine")) == "café fine"
            assert (await call).outcome == "unknown"
            await eventually(lambda: any("without an end" in str(entry.get("reason")) for entry in logs))
            await eventually(lambda: get_status(toolbox)[0] == "up")
            assert get_text(await call_tool(toolbox, "fine")) == "café fine"


def test_long_line_is_bounded_in_memory_and_time() -> None:
    splitter = LineSplitter(64 * KIB)
    started_at = time.process_time()
    assert splitter.split(b'{"jsonrpc":"2.0","id":4,"result":{"text":"') == []
    (error,) = [line for _ in range(60) for line in splitter.split(b"x" * 64 * KIB)]
    assert b'"id": 4' in error
    assert splitter.split(b'"}}\n{}\n') == [b"{}"]
    for _ in range(60 * KIB):
        splitter.split(b"y")
    buffer = splitter._line
    assert len(buffer._parts) + len(buffer._small_parts) < 1_000
    for _ in range(63):
        splitter.split(b"y" * 64 * KIB)
    with pytest.raises(EndlessLine):
        splitter.split(b"y" * 64 * KIB)
    assert len(buffer.join()) + len(buffer.start) + len(buffer.end) < KIB
    assert time.process_time() - started_at < 10


@pytest.mark.parametrize(
    ("line", "expected_id"),
    [
        (b'{"jsonrpc":"2.0","id":3,"result":{"text":"%s"}}', 3),
        (b'{"id":3,"jsonrpc":"2.0","result":{"text":"%s"}}', 3),
        (b'{"result":{"id":7,"text":"%s"},"jsonrpc":"2.0","id":4}', 4),
        (b'{"jsonrpc": "2.0", "result": {"id":7,"text":"%s"}, "id": "4", "jsonrpc": "2.0"}', 4),
        (b'{"jsonrpc":"2.0","result":"%s\\"id\\":9}', None),
        (b'{"jsonrpc":"2.0","method":"notifications/message","params":{"id":5,"data":"%s"}}', None),
        (b'{"method":"ping","params":{"data":"%s"},"jsonrpc":"2.0","id":6}', None),
    ],
)
def test_long_line_is_replaced_by_an_error_if_it_is_a_response(line: bytes, expected_id: int | None) -> None:
    splitter, data = LineSplitter(64 * KIB), line % (b"x" * 200 * KIB) + b"\n{}\n"
    lines = [line for start in range(0, len(data), 50_000) for line in splitter.split(data[start : start + 50_000])]
    *errors, last = lines
    assert last == b"{}"
    assert [b'"id": %d' % expected_id in error for error in errors] == ([] if expected_id is None else [True])


async def test_flood_of_standard_error_is_counted_and_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_log, "_WINDOW_SECONDS", 3_600.0)  # on a slow machine the flood takes several windows
    async with connect_toolbox(make_command()) as toolbox:
        with capture_logs() as logs:
            assert get_text(await call_tool(toolbox, "flood")) == "café flood"
            assert get_text(await call_tool(toolbox, "exit")).startswith("The connection to the MCP server")
            await eventually(lambda: any(entry["event"] == "mcp_server" for entry in logs))
    assert 100 <= sum(entry["event"] == "mcp_server_stderr" for entry in logs) <= 200


def test_lines_beyond_the_rate_are_counted_until_the_window_ends() -> None:
    now = [0.0]
    log = OutputLog("odd", ["a secret value"], clock=lambda: now[0])
    with capture_logs() as logs:
        for number in range(1_000):
            log.add_output(b"a secret value in line %d\n" % number)
        now[0] = 11.0
        log.add_output(b"x" * 100_000 + b"\n")
    events = [entry["event"] for entry in logs]
    assert (events.count("mcp_server_stderr"), logs[200]["lines"]) == (201, 800)
    assert max(len(entry.get("line", "")) for entry in logs) <= 2_000
    assert log.last_lines[-2] == "*** in line 999"


async def test_crash_is_told_with_exit_code_and_last_lines() -> None:
    config = make_command("crashes", env={"TOKEN": "a-secret-token"})
    async with connect_toolbox(config) as toolbox:
        status = toolbox.list_server_statuses()[0]
    assert (status.state, status.reason) == ("down", "its process ended with exit code 3")
    assert status.last_output == ("token ***", "no module named x")


@pytest.mark.faults
async def test_command_that_closes_its_output_is_started_again() -> None:
    async with connect_toolbox(make_command(timeout=30.0)) as toolbox:
        result = await call_tool(toolbox, "close")
        assert (result.outcome, "connection" in get_text(result)) == ("unknown", True)

        async def works() -> bool:
            return (await call_tool(toolbox, "fine")).outcome == "ok"

        await eventually(works, timeout_seconds=60)


class RecordingBackoff(Backoff):
    """Records the delays, and does not wait for them."""

    delays: list[float]

    def next_delay(self) -> float:
        self.delays.append(super().next_delay())
        return 0.01


@pytest.mark.parametrize("oddity", ["crashes", "crashes_after_start"])
async def test_crash_loop_is_backed_off_to_a_minute(monkeypatch: pytest.MonkeyPatch, oddity: str) -> None:
    RecordingBackoff.delays = delays = []
    monkeypatch.setattr(connection, "Backoff", RecordingBackoff)
    async with connect_toolbox(make_command(oddity), connect_timeout=0.1):
        await eventually(lambda: len(delays) >= 11)
    assert max(delays) <= 60
    assert delays[10] >= 30


async def test_server_that_exits_on_discover_is_started_without_it() -> None:
    async with connect_toolbox(make_command("exits_on_discover")) as toolbox:
        assert get_status(toolbox) == ("up", None)
        assert get_text(await call_tool(toolbox, "fine")) == "café fine"


async def test_working_directory_is_used_or_named(tmp_path: Path) -> None:
    missing = make_command(name="missing", cwd=str(tmp_path / "none"))
    relative = ServerConfig(
        name="relative", command=sys.executable, args=("-S", "-E", "server.py"), cwd=str(tmp_path), env={}
    )
    (tmp_path / "server.py").symlink_to(PROGRAM)
    async with connect_toolbox(missing, relative) as toolbox:
        first, second = toolbox.list_server_statuses()
        assert (first.state, first.reason) == ("down", "its working directory does not exist")
        assert second.state == "up"


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("stop_seconds", [5.0, 0.05], ids=["in time", "cancelled"])
async def test_process_groups_that_ignore_signals_end_when_several_stop_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop_seconds: float
) -> None:
    monkeypatch.setattr(process, "_CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(process, "_TERMINATE_SECONDS", 0.3)
    monkeypatch.setattr(connection, "_STOP_SECONDS", stop_seconds)
    file = tmp_path / "pids"
    environment = {"PID_FILE": str(file)}
    configs = [make_command("ignores_signals", name=f"s{number}", env=environment) for number in range(6)]
    async with connect_toolbox(*configs, connect_timeout=30) as toolbox:
        await eventually(lambda: {status.state for status in toolbox.list_server_statuses()} == {"up"})
        groups = read_pids(file)
        assert len(groups) == 6
    await eventually(lambda: not any(is_alive(group) for group in groups))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("end", ["stopped", "slow"])
async def test_package_runner_is_not_killed_while_it_installs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    monkeypatch.setattr(session, "START_SECONDS", 0.2)
    monkeypatch.setattr(process, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setenv("API_KEY", "not-for-children-0123456789")
    runner, pids, release, installed = (tmp_path / name for name in ("npx", "pids", "release", "installed"))
    runner.write_text(
        f"#!/bin/sh\necho $$ >> {pids}\nwhile [ ! -e {release} ]; do sleep 0.05; echo progress >&2; done\n"
        f"touch {installed}\n{sys.executable} -S -E {PROGRAM}\n"
    )
    runner.chmod(runner.stat().st_mode | stat.S_IXUSR)
    config = ServerConfig(name="odd", command=str(runner), args=("-y", "some-server"), prefix="")
    async with connect_toolbox(config, connect_timeout=0.1) as toolbox:
        await eventually(lambda: read_pids(pids))
        if end == "slow":
            await asyncio.sleep(0.5)  # longer than the time for a start
            assert get_status(toolbox) == ("connecting", None)
            release.touch()
            await eventually(lambda: get_status(toolbox) == ("up", None))
    (group,) = read_pids(pids)
    if end == "stopped":
        assert is_alive(group)
        environment = await eventually(lambda: read_environment_of_guard(group))
        assert environment
        assert b"not-for-children" not in environment
    release.touch()
    await eventually(lambda: installed.exists() and not is_alive(group))
    os.sync()


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("npx -y @scope/server", True),
        ("/usr/bin/npx server", True),
        ("uvx mcp-server-git", True),
        ("npm exec server", True),
        ("pnpm dlx server", True),
        ("uv run --with mcp server.py", True),
        ("bun x server", True),
        ("sh -c npx\\ -y\\ server", True),
        ("cmd /c npx -y server", True),
        ("node server.js", False),
        ("python -m server npxlike", False),
        ("npm start", False),
    ],
)
def test_package_runners_are_recognized(command_line: str, expected: bool) -> None:
    command, *arguments = command_line.replace("\\ ", "\0").split()
    assert is_package_runner(command, [argument.replace("\0", " ") for argument in arguments]) == expected
