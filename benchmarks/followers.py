"""`python -m benchmarks.followers`: many followers of waiting turns on one worker.

It opens streams of turns that wait for an approval, and measures the memory and the idle CPU of a stream, the time
until news reach a follower, and what happens when all leave at once. `--floor` measures streams of Starlette or of
sse-starlette in the same way, so the difference is what the gateway adds.
"""

import argparse
import asyncio
import gc
import json
import random
import resource
import sys
import time
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import compute_percentile, run_load
from benchmarks.processes import read_cpu_seconds
from benchmarks.report import describe_machine
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import (
    API_KEY,
    GatewayWorkers,
    SharedServers,
    Subject,
    ToolServer,
    UpstreamServer,
    build_get_request,
    build_post_request,
)
from benchmarks.upstream import build_prompt

_CONNECTING = 64
_ANSWERED_TURNS = 200
_PROBE_SECONDS = 0.05
_SETTLE_SECONDS = 3.0
_TIMEOUT_SECONDS = 60.0


class ApprovalGateway(GatewayWorkers):
    """A worker whose tools need an approval."""

    def __init__(self, shared: SharedServers) -> None:
        super().__init__(shared, 1)
        server = {"url": shared.tools_url, "prefix": "", "identity": "gateway", "audience": "tools-server"}
        self._config = shared.directory / "approvals.json"
        self._config.write_text(json.dumps({"mcpServers": {"tools": server | {"approval": "always"}}}))

    def get_environment(self) -> dict[str, str]:
        return super().get_environment() | {
            "MCP_SERVER_URL": "",
            "MCP_CONFIG": str(self._config),
            "MAX_CONNECTIONS": "30000",
            "MAX_SOURCE_CONNECTIONS": "30000",
            "LOG_LEVEL": "WARNING",
        }


class BareStreams(Subject):
    """Streams without the gateway; see `benchmarks.bare_streams`."""

    def __init__(self, shared: SharedServers, kind: str) -> None:
        super().__init__(shared)
        self.name = kind

    def get_command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.bare_streams", "--port", str(self.port), "--kind", self.name]


class _Follower(asyncio.Protocol):
    """An open stream, which counts what arrives."""

    __slots__ = ("crowd", "has_read_past", "request", "transport")

    def __init__(self, crowd: "Crowd", request: bytes, has_read_past: "asyncio.Future[None]") -> None:
        self.crowd, self.request, self.has_read_past = crowd, request, has_read_past
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.crowd.followers.append(self)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        crowd = self.crowd
        crowd.pings += data.count(b": ping")
        if not self.has_read_past.done() and (b"event: input.required" in data or b" 200 OK" not in data[:20]):
            self.has_read_past.set_result(None)
        if b"event: input.resolved" in data:
            crowd.resolved.append((self.request, time.perf_counter()))
            crowd.changed.set()
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            crowd.refused += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.lost += 1


class Crowd:
    """All followers of a run."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.followers: list[_Follower] = []
        self.pings = self.lost = self.refused = 0
        self.resolved: list[tuple[bytes, float]] = []
        self.changed = asyncio.Event()

    async def open_streams(self, requests: list[bytes]) -> None:
        """Open a stream for each request.

        Return when all have read the past.
        """
        loop, places = asyncio.get_running_loop(), asyncio.Semaphore(_CONNECTING)

        async def open_one(request: bytes) -> None:
            has_read_past = loop.create_future()
            async with places, asyncio.timeout(_TIMEOUT_SECONDS):
                await loop.create_connection(lambda: _Follower(self, request, has_read_past), "127.0.0.1", self.port)
                await has_read_past

        await asyncio.gather(*(open_one(request) for request in requests))

    async def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait for a change of this crowd."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while not is_true():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            counts = f"{len(self.followers)} streams, {self.refused} refused, {self.lost} lost"
            raise RuntimeError(f"{counts}, {len(self.resolved)} got news") from None

    def leave(self) -> None:
        """Close all connections at once, without a farewell."""
        for follower in self.followers:
            follower.transport.abort()


class ServerMeter:
    """Reads memory, CPU and open files of a worker."""

    def __init__(self, subject: Subject) -> None:
        assert subject.process is not None
        self._process = subject.process
        pids = subject.list_worker_pids() if isinstance(subject, GatewayWorkers) else [subject.process.pid]
        self.pid = pids[0]

    def read_memory_bytes(self) -> int:
        """Read the proportional set size of the worker."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel reports no Pss")

    def read_cpu(self) -> tuple[float, float]:
        """Read the CPU seconds of the worker, and of Postgres."""
        return read_cpu_seconds(self.pid)[0], self._process.measure_usage().postgres_seconds

    def count_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


async def _create_waiting_turns(gateway: ApprovalGateway, number: int) -> list[str]:
    """Start turns that wait for an approval; return their ids."""
    turn_ids: list[str] = []

    def read_turn_id(head: bytes) -> None:
        turn_ids.append(head.lower().split(b"x-turn-id: ", 1)[1].split(b"\r\n", 1)[0].decode())

    request = gateway.build_request(build_prompt(1, tool=True), tools=True)
    stats = await run_load(
        gateway.port, request, tokens=0, connections=16, total=number, timeout_seconds=1200, on_head=read_turn_id
    )
    if stats.errors:
        raise RuntimeError(f"the turns had errors: {dict(stats.errors)}")
    return turn_ids


async def _request_json(port: int, request: bytes) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        body = json.loads(await reader.readexactly(length))
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head[:40]!r}: {body}")
    return body


async def _approve(port: int, turn_id: str) -> float:
    """Approve the call of a turn; return the time of the request."""
    turn = await _request_json(port, build_get_request(f"/api/v1/turns/{turn_id}"))
    body = {"input_id": turn["inputs"][0]["id"], "action": "accept", "content": {}}
    request = build_post_request(f"/api/v1/turns/{turn_id}/input", body, {"X-API-Key": API_KEY})
    started_at = time.perf_counter()
    await _request_json(port, request)
    return started_at


@asynccontextmanager
async def _probe_health(port: int) -> AsyncGenerator[array]:
    """Yield the times of `/health` requests that run meanwhile."""
    seconds = array("d")

    async def probe() -> None:
        while True:
            started_at = time.perf_counter()
            await _request_json(port, build_get_request("/health"))
            seconds.append(time.perf_counter() - started_at)
            await asyncio.sleep(_PROBE_SECONDS)

    task = asyncio.create_task(probe())
    try:
        yield seconds
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _format_probe(seconds: array) -> str:
    p50, longest = compute_percentile(seconds, 50) * 1e3, max(seconds, default=0.0) * 1e3
    return f"/health meanwhile p50 {p50:.1f} ms, max {longest:.0f} ms"


async def _measure_news(crowd: Crowd, turn_ids: list[str], followers: int) -> str:
    """Approve calls, and measure the time until all their followers know."""
    seconds = array("d")
    chosen = random.Random(1).sample(turn_ids, min(_ANSWERED_TURNS, len(turn_ids)))
    for turn_id in chosen:
        crowd.resolved.clear()
        started_at = await _approve(crowd.port, turn_id)
        await crowd.wait_until(lambda: len(crowd.resolved) >= followers)
        seconds.append(max(at for _, at in crowd.resolved) - started_at)
    p50, p99 = (compute_percentile(seconds, percent) * 1e3 for percent in (50, 99))
    return (
        f"news reach {followers:,} follower(s) of a turn after p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(chosen)} turns)"
    )


async def _measure_idle(meter: ServerMeter, seconds: float) -> tuple[float, float]:
    """Return the CPU use of worker and Postgres, in seconds per second."""
    (worker, postgres), started_at = meter.read_cpu(), time.monotonic()
    await asyncio.sleep(seconds)
    (later_worker, later_postgres), elapsed = meter.read_cpu(), time.monotonic() - started_at
    return (later_worker - worker) / elapsed, (later_postgres - postgres) / elapsed


async def _measure_streams(subject: Subject, turn_ids: list[str], streams: int, idle_seconds: float) -> None:
    meter = ServerMeter(subject)
    crowd = Crowd(subject.port)
    requests = [build_get_request(f"/api/v1/turns/{turn_ids[n % len(turn_ids)]}/events") for n in range(streams)]
    await asyncio.sleep(_SETTLE_SECONDS)
    memory, files = meter.read_memory_bytes(), meter.count_files()
    cpu, postgres_cpu = await _measure_idle(meter, 5)
    print_line(f"before: {memory / 1e6:.0f} MB, CPU {cpu:.1%} + {postgres_cpu:.1%} Postgres")
    started_at = time.perf_counter()
    async with _probe_health(subject.port) if isinstance(subject, GatewayWorkers) else _no_probe() as probe:
        await crowd.open_streams(requests)
    seconds = time.perf_counter() - started_at
    print_line(f"{streams:,} streams open in {seconds:.1f} s, {crowd.refused} refused; {_format_probe(probe)}")
    await asyncio.sleep(_SETTLE_SECONDS)
    growth = meter.read_memory_bytes() - memory
    print_line(f"memory: {growth / 1e6:.0f} MB, {growth / streams / 1e3:.1f} kB a stream")
    crowd.pings = 0
    cpu, postgres_cpu = await _measure_idle(meter, idle_seconds)
    rate = crowd.pings / idle_seconds
    print_line(f"idle: CPU {cpu:.1%} + {postgres_cpu:.1%} Postgres, {rate:,.0f} pings a second")
    growth = meter.read_memory_bytes() - memory
    print_line(f"memory after that: {growth / streams / 1e3:.1f} kB a stream")
    if isinstance(subject, GatewayWorkers):
        print_line(await _measure_news(crowd, turn_ids, streams // len(turn_ids)))
    lost = crowd.lost
    started_at = time.perf_counter()
    async with _probe_health(subject.port) if isinstance(subject, GatewayWorkers) else _no_probe() as probe:
        crowd.leave()
        while meter.count_files() > files + 20:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - started_at
    print_line(f"all leave at once: files closed after {seconds:.1f} s, {lost} lost before; {_format_probe(probe)}")
    await asyncio.sleep(_SETTLE_SECONDS)
    print_line(f"after: {(meter.read_memory_bytes() - memory) / 1e6:.0f} MB more than before")


@asynccontextmanager
async def _no_probe() -> AsyncGenerator[array]:
    yield array("d", [0.0])


async def _run(options: argparse.Namespace) -> None:
    print_line(f"{describe_machine()}")
    with create_work_directory() as directory, stop_at_end() as running:
        if options.floor:
            subject: Subject = BareStreams(SharedServers(directory, "", ""), options.floor)
            running.append(subject)
            await subject.start()
            await _measure_streams(subject, ["x"], options.streams, options.idle)
            return
        upstream, tools = UpstreamServer(SharedServers(directory, "", "")), ToolServer(SharedServers(directory, "", ""))
        running += [upstream, tools]
        await upstream.start()
        await tools.start()
        shared = SharedServers(directory, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        gateway = ApprovalGateway(shared)
        running.append(gateway)
        await gateway.start()
        turn_ids = await _create_waiting_turns(gateway, options.turns)
        await _measure_streams(gateway, turn_ids, options.streams, options.idle)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.followers", description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=10_000, help="number of waiting turns that the streams share")
    parser.add_argument("--idle", type=float, default=45.0, help="seconds for which the idle CPU is measured")
    parser.add_argument("--floor", choices=("starlette", "sse-starlette"), help="measure bare streams instead")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()
    gc.disable()
    uvloop.run(_run(options))


if __name__ == "__main__":
    main()
