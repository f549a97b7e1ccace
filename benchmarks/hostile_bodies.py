"""Costs of hostile and valid request bodies of the largest size.

Run `python -m benchmarks.hostile_bodies`. Each shape has the largest body that its route accepts. Printed are the
longest callback of the gateway's event loop, in CPU time of its thread (median of five requests), and the peak of
memory above the body.
"""

import argparse
import asyncio
import http.client
import logging
import os
import statistics
import sys
import time
import tracemalloc
from asyncio.events import Handle
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import aiohttp
import structlog

TURN_BYTES = 4 * 1024 * 1024
TOOL_BYTES = 1024 * 1024
MAX_ITEMS = 50_000
MAX_CPU_SECONDS = 0.05
MAX_MEMORY_BYTES = 64 * 1024 * 1024
REPEATS = 5
_MCP_HEADERS = {"Accept": "application/json, text/event-stream"}


@dataclass(frozen=True)
class HostileBody:
    """Body of a request that tries to exhaust the gateway."""

    name: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def _repeat(start: str, item: str, end: str, *, size: int, items: int | None = None) -> bytes:
    """Join the items that fit into `size`, but at most `items`."""
    fitting = (size - len(start) - len(end)) // (len(item.encode()) + 1)
    count = fitting if items is None else min(fitting, items)
    return (start + ",".join([item] * count) + end).encode()


def _number_keys(start: str, end: str, *, count: int, value: str = "1") -> bytes:
    return (start + ",".join(f'"k{number}":{value}' for number in range(count)) + end).encode()


def _pad(start: str, character: str, end: str, *, size: int) -> bytes:
    return (start + character * ((size - len(start.encode()) - len(end)) // len(character.encode())) + end).encode()


def _build_rpc(method: str, params: str) -> tuple[str, str]:
    return f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}', "}}"


def list_hostile_bodies() -> list[HostileBody]:
    """List the largest bodies of each hostile shape and route."""
    message = '{"messages":[{"role":"user","content":"x"}],'
    call_start, call_end = _build_rpc("tools/call", '"name":"calculator","arguments":{"a":[')
    prompt_start, prompt_end = _build_rpc("prompts/get", '"name":"x","arguments":{')
    shapes: list[tuple[str, str, bytes]] = [
        ("wrong items by size", "/v1/responses", _repeat('{"input":[', '{"a":1}', "]}", size=TURN_BYTES)),
        ("wrong items", "/v1/responses", _repeat('{"input":[', "1", "]}", size=TURN_BYTES, items=49_000)),
        ("empty items", "/v1/responses", _repeat('{"input":[', "{}", "]}", size=TURN_BYTES, items=24_000)),
        (
            "valid items",
            "/v1/responses",
            _repeat('{"input":[', '{"role":"user","content":"x"}', "]}", size=TURN_BYTES, items=9_900),
        ),
        ("wrong tools", "/v1/responses", _repeat('{"input":"x","tools":[', "{}", "]}", size=TURN_BYTES, items=24_000)),
        ("wrong metadata", "/v1/responses", _number_keys('{"input":"x","metadata":{', "}}", count=24_000)),
        ("unknown keys by size", "/api/v1/chat", _number_keys("{", "}", count=350_000)),
        ("unknown keys", "/api/v1/chat", _number_keys("{", "}", count=24_000)),
        ("wrong messages", "/api/v1/chat", _repeat('{"messages":[', "{}", "]}", size=TURN_BYTES, items=24_000)),
        (
            "wrong parts",
            "/api/v1/chat",
            _repeat('{"messages":[{"role":"user","content":[', "1", "]}]}", size=TURN_BYTES, items=49_000),
        ),
        (
            "valid messages",
            "/api/v1/chat",
            _repeat('{"messages":[', '{"role":"user","content":"x"}', "]}", size=TURN_BYTES, items=9_900),
        ),
        (
            "wrong names of tools",
            "/api/v1/chat",
            _repeat(message + '"tools":[', "1", "]}", size=TURN_BYTES, items=49_000),
        ),
        ("escapes", "/api/v1/chat", _pad('{"messages":[{"role":"user","content":"', "\\n", '"}]}', size=TURN_BYTES)),
        (
            "pairs of surrogates",
            "/api/v1/chat",
            _pad('{"messages":"', "\\ud83d\\ude00", '"}', size=TURN_BYTES),
        ),
        (
            "wide characters",
            "/api/v1/chat",
            _pad('{"messages":[{"role":"user","content":"\U0001f600', "x", '"}]}', size=TURN_BYTES),
        ),
        ("empty strings", "/api/v1/chat", _repeat('{"messages":[', '""', "]}", size=TURN_BYTES)),
        ("brackets", "/api/v1/chat", b"[" * TURN_BYTES),
        ("levels", "/api/v1/chat", b"[" * 24_000 + b"]" * 24_000),
        ("towers", "/api/v1/chat", _repeat("[", "[" * 99 + "]" * 99, "]", size=TURN_BYTES, items=490)),
        ("quotes", "/api/v1/chat", b'"' * TURN_BYTES),
        ("UTF-16", "/api/v1/chat", ('{"messages":"' + "\u2222" * (TURN_BYTES // 2 - 16) + '"}').encode("utf-16")),
        ("wrong messages", "/v1/chat/completions", _repeat('{"messages":[', "{}", "]}", size=TURN_BYTES, items=24_000)),
        (
            "valid messages",
            "/v1/chat/completions",
            _repeat('{"messages":[', '{"role":"user","content":"x"}', "]}", size=TURN_BYTES, items=9_900),
        ),
        (
            "wrong biases",
            "/v1/chat/completions",
            _number_keys(message + '"logit_bias":{', "}}", count=24_000, value='"a"'),
        ),
        ("unknown keys", "/stream", _number_keys("{", "}", count=24_000)),
        ("unknown keys", "/api/chat/stream", _number_keys("{", "}", count=24_000)),
        ("unknown keys", "/api/ada/chat", _number_keys("{", "}", count=24_000)),
        ("wrong arguments", "/api/v1/mcp/prompts/x", _number_keys('{"arguments":{', "}}", count=24_000)),
        ("arguments", "/api/v1/tools/calculator", _number_keys("{", "}", count=24_000)),
        ("numbers", "/api/v1/tools/calculator", _repeat('{"a":[', "1", "]}", size=TOOL_BYTES, items=49_000)),
        ("scopes", "/api/v1/keys", _repeat('{"scopes":[', "1", "]}", size=256 * 1024, items=49_000)),
        ("arguments of a tool", "/mcp", _repeat(call_start, "1", "]}" + call_end, size=TOOL_BYTES, items=49_000)),
        ("wrong arguments", "/mcp", _number_keys(prompt_start, "}" + prompt_end, count=24_000)),
        ("batch", "/mcp", _repeat("[", '{"jsonrpc":"2.0"}', "]", size=TOOL_BYTES, items=24_000)),
        ("unknown keys", "/mcp", _number_keys("{", "}", count=24_000)),
    ]
    return [HostileBody(*shape) for shape in shapes]


def send_body(base_url: str, body: HostileBody) -> int:
    """Send a body, and return the status of the response.

    It blocks, so it runs in a thread.
    """
    url = urlsplit(base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    headers = {"Content-Type": "application/json", "Connection": "close", **_MCP_HEADERS, **dict(body.headers)}
    try:
        connection.request("POST", body.path, body.body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (ConnectionError, http.client.HTTPException):  # closed while the body was being sent
        return 0
    finally:
        connection.close()


@contextmanager
def measure_callbacks() -> Generator[Callable[[], float]]:
    """Measure callbacks of asyncio's own event loop.

    Yields a function that returns the CPU seconds of the longest.
    """
    longest = 0.0
    run = Handle._run

    def run_measured(self: Handle) -> None:
        nonlocal longest
        started_at = time.thread_time()
        run(self)
        longest = max(longest, time.thread_time() - started_at)

    Handle._run = run_measured
    try:
        yield lambda: longest
    finally:
        Handle._run = run


async def measure_body(base_url: str, body: HostileBody) -> tuple[int, float, int]:
    """Send a body several times, and measure the server.

    Returns the status, the CPU seconds of the longest callback, and the peak of memory above the body in bytes.
    """
    seconds: list[float] = []
    status = 0
    for _ in range(REPEATS):
        with measure_callbacks() as get_longest:
            status = await asyncio.to_thread(send_body, base_url, body)
        seconds.append(get_longest())
    tracemalloc.start()
    await asyncio.to_thread(send_body, base_url, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return status, statistics.median(seconds), max(0, peak - len(body.body))


def _open_session(base_url: str) -> tuple[str, str]:
    """Open a session of the legacy protocol; return its header."""
    url = urlsplit(base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    client = '"clientInfo":{"name":"benchmark","version":"1"}'
    method = '"jsonrpc":"2.0","id":0,"method":"initialize"'
    body = f'{{{method},"params":{{"protocolVersion":"2025-11-25","capabilities":{{}},{client}}}}}'
    connection.request("POST", "/mcp", body, {"Content-Type": "application/json", **_MCP_HEADERS})
    response = connection.getresponse()
    response.read()
    return "Mcp-Session-Id", response.headers["Mcp-Session-Id"]


@asynccontextmanager
async def _start_server(module: str, env: Mapping[str, str], *options: str, url: str) -> AsyncGenerator[None]:
    """Run a server whose work is not measured, in another process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *options, env={**os.environ, **env}, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(600):
                try:
                    async with session.get(url):
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _serve_all() -> AsyncGenerator[str]:
    """Run Postgres, the simulator and the tool server as processes.

    The gateway runs in this one.
    """
    # Imported here because only this command needs the test stack.
    import tempfile
    from pathlib import Path
    from types import SimpleNamespace
    from typing import Any, cast

    from gateway.store import migrations
    from gateway_runtime import embedded_postgres
    from tests.stack import SECRET, find_free_port, serve_gateway

    with tempfile.TemporaryDirectory(prefix="agw-") as directory:
        Path(directory).chmod(0o755)  # noqa: ASYNC240
        postgres = embedded_postgres.start_or_attach(Path(directory))
        try:
            await asyncio.to_thread(migrations.upgrade_schema, postgres.build_url())
            model, tools = find_free_port(), find_free_port()
            tools_env = {
                "DATABASE_URL": postgres.build_url(),
                "TOOLS_SERVER_PORT": str(tools),
                "TOOLS_SERVER_SECRET": SECRET,
            }
            simulator = cast(Any, SimpleNamespace(base_url=f"http://127.0.0.1:{model}"))
            async with (
                _start_server(
                    "gateway.simulator", {}, "--port", str(model), "--tokens-per-second", "0", url=simulator.base_url
                ),
                _start_server("tools_server.cli", tools_env, url=f"http://127.0.0.1:{tools}/health"),
                serve_gateway(
                    postgres.build_url(), simulator, f"http://127.0.0.1:{tools}/mcp", rate_limit_enabled=False
                ) as gateway,
            ):
                yield gateway.base_url
        finally:
            postgres.stop_if_started_here()


async def _run(pattern: str) -> int:
    from benchmarks.valid_bodies import list_valid_bodies

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    failures = 0
    async with _serve_all() as url:
        for body in [*list_hostile_bodies(), *list_valid_bodies()]:
            if pattern not in f"{body.path} {body.name}":
                continue
            if ("Mcp-Session-Id", "") in body.headers:
                body = replace(body, headers=(*body.headers, await asyncio.to_thread(_open_session, url)))
            status, seconds, memory = await measure_body(url, body)
            is_within = seconds <= MAX_CPU_SECONDS and memory <= MAX_MEMORY_BYTES
            failures += not is_within
            label = f"{body.path:24} {body.name:22} {len(body.body):>9,} bytes"
            mark = "" if is_within else "  over the limit"
            print(f"{label}  {status}  {seconds * 1000:6.1f} ms  {memory / 2**20:5.1f} MB{mark}", flush=True)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile_bodies", description=__doc__)
    parser.add_argument("--only", default="", help="part of the path or name of the bodies to send")
    sys.exit(1 if asyncio.run(_run(parser.parse_args().only)) else 0)


if __name__ == "__main__":
    main()
