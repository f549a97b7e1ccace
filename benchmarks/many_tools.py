"""`python -m benchmarks.many_tools`: measure many tools of many servers.

By default there are 5,000 tools of 50 MCP servers (`--servers`, `--tools`). The same gateway without them is the
baseline, in the same run.
"""

import argparse
import asyncio
import json
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.load import compute_percentile, run_load
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import API_KEY, Gateway, SharedServers, Subject, UpstreamServer
from benchmarks.upstream import build_prompt

_TURNS = 200
_LISTS = 20
_HOST_LISTS = 5  # MCP's SDK takes long to read them
_TOKENS = 10
_LIMIT_SECONDS = 300.0
_HEADERS = {"Authorization": f"Bearer {API_KEY}"}


class ToolServers(Subject):
    """Many MCP servers in one process."""

    name = "tool-servers"

    def __init__(self, shared: SharedServers, server_count: int, tool_count: int) -> None:
        super().__init__(shared)
        self._counts = server_count, tool_count

    def get_command(self) -> list[str]:
        servers, tools = map(str, self._counts)
        numbers = ("--port", str(self.port), "--servers", servers, "--tools", tools)
        return [sys.executable, "-m", "benchmarks.tool_servers", *numbers]


class ToolGateway(Gateway):
    """The gateway with the servers of a file."""

    def __init__(self, shared: SharedServers, name: str, servers: dict[str, Any]) -> None:
        super().__init__(shared)
        self.name = name
        self._config = shared.directory / f"{name}.json"
        self._config.write_text(json.dumps({"mcpServers": servers}))

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / self.name

    def get_environment(self) -> dict[str, str]:
        return super().get_environment() | {"MCP_CONFIG": str(self._config)}

    @property
    def megabytes(self) -> float:
        assert self.process is not None
        return self.process.measure_usage().resident_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_tools", description=__doc__)
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--tools", type=int, default=100, help="tools of each server")
    options = parser.parse_args()
    with create_work_directory() as directory:
        asyncio.run(_compare(directory, options.servers, options.tools))


async def _compare(directory: Path, server_count: int, tool_count: int) -> None:
    with stop_at_end() as running:
        upstream = UpstreamServer(SharedServers(directory, "", ""))
        servers = ToolServers(SharedServers(directory, "", ""), server_count, tool_count)
        running += [upstream, servers]
        await upstream.start()
        await servers.start()
        shared = SharedServers(directory, f"http://127.0.0.1:{upstream.port}", "")
        entries = {f"s{n}": {"url": f"http://127.0.0.1:{servers.port}/{n}/mcp"} for n in range(server_count)}
        for gateway, tools in (
            (ToolGateway(shared, "without", {}), 0),
            (ToolGateway(shared, "with", entries), server_count * tool_count),
        ):
            running.append(gateway)
            await gateway.start()
            await _measure(gateway, tools)
            gateway.stop()


async def _measure(gateway: ToolGateway, tool_count: int) -> None:
    started_at = time.perf_counter()
    base_url = f"http://127.0.0.1:{gateway.port}"
    async with aiohttp.ClientSession(base_url, headers=_HEADERS) as session, asyncio.timeout(_LIMIT_SECONDS):
        while (listed := await _count_tools(session)) < tool_count:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)
        seconds = time.perf_counter() - started_at
        print_line(f"{gateway.name} tools: {listed:,} listed {seconds:.1f} s after /ready, {gateway.megabytes:.0f} MB")
        await _measure_lists(session, gateway)
    await _measure_turns(gateway)
    print_line(f"{gateway.name} tools: {gateway.megabytes:.0f} MB after {_TURNS} turns")


async def _count_tools(session: aiohttp.ClientSession) -> int:
    async with session.get("/api/v1/mcp/servers") as response:
        return sum(server["tools"] for server in (await response.json())["servers"] if server["state"] == "up")


async def _measure_lists(session: aiohttp.ClientSession, gateway: ToolGateway) -> None:
    times = array("d")
    size = 0
    for _ in range(_LISTS):
        started_at = time.perf_counter()
        async with session.get("/api/v1/tools") as response:
            size = len(await response.read())
        times.append(time.perf_counter() - started_at)
    print_line(f"{gateway.name} tools: GET /api/v1/tools {_format_times(times)}, {size / 1e6:.2f} MB")
    times = array("d")
    async with httpx2.AsyncClient(headers=_HEADERS, timeout=60) as http_client:
        transport = streamable_http_client(f"http://127.0.0.1:{gateway.port}/mcp", http_client=http_client)
        async with Client(transport) as client:
            for _ in range(_HOST_LISTS):
                started_at = time.perf_counter()
                cursor: str | None = None
                while True:
                    page = await client.list_tools(cursor=cursor)
                    if (cursor := page.next_cursor) is None:
                        break
                times.append(time.perf_counter() - started_at)
    print_line(f"{gateway.name} tools: all pages of tools/list at /mcp {_format_times(times)}")


async def _measure_turns(gateway: ToolGateway) -> None:
    request = gateway.build_request(build_prompt(_TOKENS), tools=True)
    await run_load(gateway.port, request, tokens=_TOKENS, connections=1, total=10)
    assert gateway.process is not None
    before = gateway.process.measure_usage()
    stats = await run_load(gateway.port, request, tokens=_TOKENS, connections=1, total=_TURNS)
    after = gateway.process.measure_usage()
    cpu = (after.server_seconds - before.server_seconds) / _TURNS * 1e3
    errors = f", errors: {dict(stats.errors)}" if stats.errors else ""
    first = _format_times(stats.first_token_seconds)
    print_line(f"{gateway.name} tools: turn with all tools, first token {first}, CPU {cpu:.2f} ms{errors}")


def _format_times(seconds: array) -> str:
    p50, p99 = (compute_percentile(seconds, percent) * 1e3 for percent in (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


if __name__ == "__main__":
    main()
