"""Hosts of `agent-gateway mcp-stdio` that send garbage, vanish or are killed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.e2e.running_stack import ROOT, clean_environment
from tests.eventually import eventually
from tests.stack import Gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
COMMAND = (sys.executable, "-m", "gateway.cli", "mcp-stdio", "--url")
INFO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
VERSION = "io.modelcontextprotocol/protocolVersion"
MAX_LINE = 64 * 1024 * 1024


class StdioHost:
    """A host that speaks lines to the command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send_line(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def send(self, **message: Any) -> None:
        await self.send_line(json.dumps({"jsonrpc": "2.0", **message}).encode())

    async def receive(self, request_id: int) -> Any:
        """Return the response to a request."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while True:
                line = await self.process.stdout.readline()
                assert line, "the command has ended"
                message = json.loads(line)
                if message.get("id") == request_id:
                    return message

    async def request(self, request_id: int, method: str, params: Any = None) -> Any:
        await self.send(id=request_id, method=method, **({} if params is None else {"params": params}))
        return await self.receive(request_id)

    async def shake_hands(self) -> None:
        assert "result" in await self.request(1, "initialize", INFO)
        await self.send(method="notifications/initialized")


@asynccontextmanager
async def run_command(gateway: Gateway) -> AsyncGenerator[StdioHost]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        gateway.base_url,
        cwd=ROOT,
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=MAX_LINE,
    )
    try:
        yield StdioHost(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_garbage_of_a_host_fails_nothing_else(gateway: Gateway) -> None:
    async with run_command(gateway) as host:
        await host.shake_hands()
        for line in (b"garbage", b"\xff\xfe\x00", b"[]", b"{}", b"null", b'{"jsonrpc": "2.0"}', b"", b"[" * 100_000):
            await host.send_line(line)
        odd: list[Any] = ["text", 7, [1], {"name": 5}, {"_meta": "text"}, {"_meta": [1]}]
        odd += [{"name": "calculator", "arguments": arguments} for arguments in ([1], "text", 7)]
        modern = {"_meta": {VERSION: "2026-07-28"}}
        odd += [{**modern, "name": "calculator", "arguments": [1]}, {"_meta": {VERSION: "\r\nX: y"}}]
        odd += [{**modern, "name": "caf\u00e9\r\nX: y\ud800", "arguments": {}}]
        for number, params in enumerate(odd, start=10):
            await host.send(id=number, method="tools/call", params=params)
        await host.send(id=90, method="tools/call\r\nX-Evil: 1", params=modern)
        await host.send(method="notifications/none", params={"_meta": "text"})
        result = await host.request(100, "tools/call", {"name": "calculator", "arguments": {"expression": "6*7"}})
        assert "42" in json.dumps(result["result"])


async def test_message_that_is_too_large_fails_its_own_request(gateway: Gateway) -> None:
    async with run_command(gateway) as host:
        await host.shake_hands()
        huge = {"name": "calculator", "arguments": {"expression": "1" * 20_000_000}}
        refused = await host.request(2, "tools/call", huge)
        assert "error" in refused
        result = await host.request(3, "tools/call", {"name": "calculator", "arguments": {"expression": "6*7"}})
        assert "42" in json.dumps(result["result"])


async def test_command_ends_and_closes_its_session_when_the_host_closes_its_input(gateway: Gateway) -> None:
    async with run_command(gateway) as host:
        await host.shake_hands()
        endpoint = gateway.state.mcp
        assert endpoint.session_count == 1
        await host.send(id=2, method="tools/call", params={"name": "calculator", "arguments": {"expression": "1+1"}})
        assert host.process.stdin is not None
        host.process.stdin.close()
        assert await asyncio.wait_for(host.process.wait(), 30) == 0
        await eventually(lambda: endpoint.session_count == 0)


async def test_command_ends_with_a_host_that_is_killed(gateway: Gateway) -> None:
    """The host is a process of its own, which starts the command."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *COMMAND, gateway.base_url),
        cwd=ROOT,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    def has_ended() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        return "Z" in open(f"/proc/{child}/stat").read().split()[2]

    try:
        await eventually(has_ended)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
