"""Tests of stdio, legacy SSE, connections per user and server changes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gateway.domain.messages import Principal
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.tools import ToolCallRequest
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.test_toolbox import (
    ADA,
    ROOT,
    call_tool,
    connect_toolbox,
    get_text,
    wait_for_hanging_calls,
)
from tests.stack import find_free_port, serve_asgi

MODULE = "tests.gateway.mcp_client.mcp_servers"


def make_stdio_config(**options: object) -> ServerConfig:
    environment = {"PYTHONPATH": str(ROOT), "MARK": "of the test"}
    return ServerConfig(name="own", command=sys.executable, args=("-m", MODULE, "stdio"), env=environment, **options)  # type: ignore[arg-type]


@pytest.fixture
async def sse_server() -> AsyncGenerator[ServerConfig]:
    port = find_free_port()
    process = subprocess.Popen([sys.executable, "-m", MODULE, str(port), "sse"], cwd=ROOT)
    try:
        yield ServerConfig(name="old", url=f"http://127.0.0.1:{port}/sse", type="sse")
    finally:
        process.kill()
        process.wait()


def find_stdio_processes() -> set[int]:
    """Return the ids of child processes that serve over stdio."""
    pids: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if b"stdio" in words and parent == os.getpid():
            pids.add(int(entry.name))
    return pids


async def wait_until_up(toolbox: McpToolbox) -> None:
    await eventually(lambda: toolbox.list_server_statuses()[0].state == "up")


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
async def test_stdio_command_is_restarted_when_killed_and_stopped_at_the_end() -> None:
    async with connect_toolbox(make_stdio_config(), connect_timeout=30) as toolbox:
        assert get_text(await call_tool(toolbox, "own_echo", text="hi")) == "hi"
        assert toolbox.list_server_statuses()[0].transport == "stdio"
        (pid,) = find_stdio_processes()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: find_stdio_processes() - {pid} and toolbox.list_server_statuses()[0].state == "up")
        assert get_text(await call_tool(toolbox, "own_echo", text="again")) == "again"
    assert find_stdio_processes() == set()


async def test_killed_stdio_command_makes_the_outcome_of_a_write_unknown() -> None:
    async with connect_toolbox(make_stdio_config(), connect_timeout=30) as toolbox:
        await wait_until_up(toolbox)
        call_task = asyncio.create_task(call_tool(toolbox, "own_hang_write"))
        await wait_for_hanging_calls(toolbox, "own_hanging", 1)
        for pid in find_stdio_processes():
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            assert (await call_task).outcome == "unknown"


async def test_missing_stdio_command_is_reported_in_the_status() -> None:
    missing = ServerConfig(name="missing", command="/no/such/command")
    async with connect_toolbox(missing) as toolbox:
        status = toolbox.list_server_statuses()[0]
        assert (status.state, status.reason) == ("down", "its command cannot be run: No such file or directory")


async def test_legacy_sse_transport_is_supported(sse_server: ServerConfig) -> None:
    async with connect_toolbox(sse_server, connect_timeout=0.1) as toolbox:
        await wait_until_up(toolbox)
        assert get_text(await call_tool(toolbox, "old_echo", text="hi")) == "hi"
        assert toolbox.list_server_statuses()[0].transport == "sse"
        assert (await call_tool(toolbox, "old_crash")).outcome == "error"


async def test_share_user_opens_a_connection_per_user() -> None:
    server = TrialServer()
    async with serve_asgi(server.create_app(modern=False)) as address:
        config = ServerConfig(name="t", url=f"{address}/mcp", prefix="", identity="gateway", share="user")
        async with connect_toolbox(config) as toolbox:
            request_count = len(server.requests)
            for user in ("ada", "bob", "ada"):
                assert get_text(await call_tool(toolbox, "echo", principal=Principal(user), text=user)) == user
            tokens = {token for _, token in server.requests[request_count:] if token}
            assert len(tokens) == 2
            assert len(toolbox._pool._personal) == 2


async def test_identity_header_of_the_client_is_forwarded() -> None:
    async with serve_asgi(TrialServer().create_app()) as address:
        config = ServerConfig(name="t", url=f"{address}/mcp", prefix="", identity="header:Authorization")
        async with connect_toolbox(config) as toolbox:
            assert toolbox.get_forwarded_headers() == {"authorization"}
            principal = Principal("ada", headers={"authorization": "Bearer ada's own"})
            calls = [call_tool(toolbox, "whoami", principal=caller) for caller in (principal, ADA, principal)]
            headers = [get_text(result) for result in await asyncio.gather(*calls)]
    assert headers == ["Bearer ada's own", "nobody", "Bearer ada's own"]


async def test_servers_are_added_and_removed_during_calls() -> None:
    server = TrialServer()
    async with serve_asgi(server.create_app()) as address:
        one = ServerConfig(name="one", url=f"{address}/mcp")
        two = ServerConfig(name="two", url=f"{address}/mcp")
        async with connect_toolbox(one) as toolbox:
            connection = toolbox._pool.get_shared("one")
            toolbox.reconcile([one, two])
            await eventually(lambda: toolbox.find_tool("two_echo") is not None)
            assert toolbox._pool.get_shared("one") is connection
            spec = toolbox.find_tool("two_slow")
            assert spec is not None
            call_task = asyncio.create_task(toolbox.call_tool(ToolCallRequest(spec, {}, ADA)))
            async with asyncio.timeout(30):
                await server.started.wait()
            toolbox.reconcile([one])
            assert toolbox.find_tool("two_echo") is None
            result = await toolbox.call_tool(ToolCallRequest(spec, {}, ADA))
            assert "no longer connected" in result.content[0]["text"]  # type: ignore[union-attr]
            server.release.set()
            assert (await call_task).content[0]["text"] == "done"  # type: ignore[union-attr]
