"""`python -m benchmarks.costs`: measure the cost of each part of a turn.

`--write` writes the result into `costs.json` and `docs/scaling.md`.
"""

import argparse
import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec
import uvloop

from benchmarks.load import run_load
from benchmarks.processes import ROOT, ServerProcess, measure_resident_bytes
from benchmarks.report import describe_machine
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import GatewayWorkers, SharedServers, ToolServer, UpstreamServer
from benchmarks.upstream import build_prompt
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn

COSTS_FILE = Path(__file__).with_name("costs.json")
SCALING_PAGE = ROOT / "docs" / "scaling.md"
_STREAM_COUNT = 500
_SETTLE_SECONDS, _IDLE_SECONDS = 0.5, 5.0
_BYTES_PER_TOKEN = 5
# Only transactions that write get a number, so the number counts commits.
_COMMITS_SQL = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS commits, pg_current_wal_insert_lsn() - '0/0' AS wal"""
_TABLE_SIZES_SQL = """
SELECT (SELECT count(*) FROM turn_events) AS journal_rows,
       pg_total_relation_size('turn_events') AS journal,
       (SELECT sum(pg_total_relation_size(oid)) FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'turn_events') AS other_tables,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS connections"""


class Costs(msgspec.Struct, frozen=True):
    """Measured costs, explained in `LABELS`. kB and MB are decimal."""

    measured: str
    turn_ms: float
    token_us: float
    light_token_us: float
    paced_token_us: float
    tool_call_ms: float
    postgres_turn_ms: float
    postgres_paced_turn_ms: float
    postgres_tool_call_ms: float
    commits_alone: float
    commits_busy: float
    commits_paced: float
    commits_tool_call: float
    wal_kb: float
    journal_rows: float
    journal_kb: float
    turn_kb: float
    bytes_per_text_byte: float
    tool_call_kb: float
    worker_mb: float
    stream_kb: float
    worker_connections: int
    max_worker_connections: int
    worker_files: int
    stream_files: float


LABELS = {
    "turn_ms": "gateway: CPU ms per turn, without its tokens",
    "token_us": "gateway: CPU µs per token, in bursts",
    "light_token_us": "gateway: CPU µs per token, 10 ms apart, 50 streams: each token is read and written alone",
    "paced_token_us": "gateway: CPU µs per token, 10 ms apart, 200 streams: a busy worker reads several tokens at once",
    "tool_call_ms": "gateway: CPU ms per tool call, with the following model call",
    "postgres_turn_ms": "Postgres: CPU ms per turn, in bursts of 32",
    "postgres_paced_turn_ms": "Postgres: CPU ms per turn of 100 tokens, 10 ms apart, 200 at once",
    "postgres_tool_call_ms": "Postgres: CPU ms per tool call",
    "commits_alone": "commits per turn, one at a time",
    "commits_busy": "commits per turn, 32 at once",
    "commits_paced": "commits per turn of 100 tokens, 10 ms apart, 200 at once",
    "commits_tool_call": "additional commits per tool call, 16 at once",
    "wal_kb": "WAL: kB per turn of 100 tokens, 10 ms apart",
    "journal_rows": "journal: rows per turn of 100 tokens, 10 ms apart",
    "journal_kb": "journal: kB per turn of 100 tokens, 10 ms apart, with its index",
    "turn_kb": "all other tables: kB per turn, with indexes, without its texts",
    "bytes_per_text_byte": "all other tables: bytes per byte of answer (text, messages, search index)",
    "tool_call_kb": "all other tables: kB per tool call",
    "worker_mb": "memory: MB per worker that has served requests",
    "stream_kb": "memory: kB per open stream",
    "worker_connections": "connections to Postgres per worker, under these loads",
    "max_worker_connections": "maximum of these connections (`DATABASE_POOL_SIZE` 5, twice; journal, 2; lease; bus; "
    "health checks, 2)",
    "worker_files": "open files per worker",
    "stream_files": "open files per stream",
}


@dataclass
class LoadCost:
    """CPU seconds and database writes of a load."""

    turns: int
    server_seconds: float
    postgres_seconds: float
    growth: dict[str, float]
    tokens: int

    def per_turn(self, name: str) -> float:
        return self.growth[name] / self.turns


class MeasuredWorker:
    """A worker, with the figures of its processes and its database."""

    def __init__(self, gateway: GatewayWorkers, database: asyncpg.Connection) -> None:
        self._gateway = gateway
        self._database = database
        self._idle_commits = 0.0

    @property
    def process(self) -> ServerProcess:
        assert self._gateway.process is not None
        return self._gateway.process

    async def measure_idle_commits(self) -> None:
        """Measure the commits per second without requests.

        They are subtracted from those of the loads.
        """
        before = (await self.read_database_figures())["commits"]
        await asyncio.sleep(_IDLE_SECONDS)
        self._idle_commits = ((await self.read_database_figures())["commits"] - before) / (
            _IDLE_SECONDS + _SETTLE_SECONDS
        )

    async def read_database_figures(self) -> dict[str, float]:
        """Read commits and sizes, then vacuum.

        Without it, autovacuum would change the sizes at any time.
        """
        await asyncio.sleep(_SETTLE_SECONDS)  # turns finish some work after their answers
        figures: dict[str, float] = {}
        for query in (_COMMITS_SQL, _TABLE_SIZES_SQL):
            row = await self._database.fetchrow(query)
            assert row is not None
            figures |= {name: float(value) for name, value in row.items()}
            await self._database.execute("VACUUM")
        return figures

    async def measure_load(
        self, tokens: int, connections: int, total: int, *, delay_ms: int = 0, tool: bool = False
    ) -> LoadCost:
        """Run a load after a warm-up of eight requests."""
        request = self._gateway.build_request(build_prompt(tokens, delay_ms, tool=tool), tools=tool)
        port = self._gateway.port
        await run_load(port, request, tokens=tokens, connections=min(connections, 8), total=8)
        before = await self.read_database_figures()
        usage_before = self.process.measure_usage()
        ramp_up = 1.0 if delay_ms else 0.0
        stats = await run_load(
            port, request, tokens=tokens, connections=connections, total=total, ramp_up_seconds=ramp_up
        )
        if stats.errors:
            raise RuntimeError(f"the load had errors: {dict(stats.errors)}")
        await asyncio.sleep(0.1)
        usage = self.process.measure_usage()
        after = await self.read_database_figures()
        growth = {name: after[name] - before[name] for name in before} | {"connections": after["connections"]}
        growth["commits"] -= self._idle_commits * (stats.duration_seconds + _SETTLE_SECONDS)
        server_seconds = usage.server_seconds - usage_before.server_seconds
        postgres_seconds = usage.postgres_seconds - usage_before.postgres_seconds
        return LoadCost(total, server_seconds, postgres_seconds, growth, tokens * total)

    async def measure_open_streams(self) -> tuple[float, float]:
        """Return bytes and open files per open stream."""
        pid = self._gateway.list_worker_pids()[0]
        memory, files = measure_resident_bytes([pid]), _count_open_files(pid)
        request = self._gateway.build_request(build_prompt(4, 2000))
        load = run_load(
            self._gateway.port, request, tokens=4, connections=_STREAM_COUNT, total=_STREAM_COUNT, ramp_up_seconds=1.0
        )
        task = asyncio.create_task(load)
        max_memory = max_files = 0
        while not task.done():
            max_memory = max(max_memory, measure_resident_bytes([pid]))
            max_files = max(max_files, _count_open_files(pid))
            await asyncio.sleep(0.1)
        if (await task).errors:
            raise RuntimeError(f"the streams had errors: {dict(task.result().errors)}")
        return (max_memory - memory) / _STREAM_COUNT, (max_files - files) / _STREAM_COUNT

    def count_open_files(self) -> int:
        return _count_open_files(self._gateway.list_worker_pids()[0])

    def measure_memory_bytes(self) -> int:
        return measure_resident_bytes(self._gateway.list_worker_pids())


def _count_open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def measure_costs() -> Costs:
    """Start one worker and measure it under one load after the other."""
    async with _run_worker() as worker:
        await worker.measure_idle_commits()
        files = worker.count_open_files()
        alone = await worker.measure_load(1, 1, 60)
        turn = await worker.measure_load(1, 32, 3200)
        burst = await worker.measure_load(200, 32, 3200)
        light = await worker.measure_load(100, 50, 200, delay_ms=10)
        paced = await worker.measure_load(100, 200, 600, delay_ms=10)
        tool = await worker.measure_load(100, 16, 960, tool=True)
        memory = worker.measure_memory_bytes()
        stream_bytes, stream_files = await worker.measure_open_streams()
    turn_kb, burst_kb = (cost.per_turn("other_tables") / 1e3 for cost in (turn, burst))
    turn_ms = turn.server_seconds / turn.turns * 1e3
    token_us = (burst.server_seconds / burst.turns - turn.server_seconds / turn.turns) / 199 * 1e6
    postgres_ms = burst.postgres_seconds / burst.turns * 1e3
    costs = {
        "turn_ms": turn_ms,
        "token_us": token_us,
        "light_token_us": (light.server_seconds / light.turns * 1e3 - turn_ms) * 10,
        "paced_token_us": (paced.server_seconds / paced.turns * 1e3 - turn_ms) * 10,
        "tool_call_ms": tool.server_seconds / tool.turns * 1e3 - turn_ms - token_us / 10,
        "postgres_turn_ms": postgres_ms,
        "postgres_paced_turn_ms": paced.postgres_seconds / paced.turns * 1e3,
        "postgres_tool_call_ms": tool.postgres_seconds / tool.turns * 1e3 - postgres_ms,
        "commits_alone": alone.per_turn("commits"),
        "commits_busy": burst.per_turn("commits"),
        "commits_paced": paced.per_turn("commits"),
        "commits_tool_call": tool.per_turn("commits") - burst.per_turn("commits"),
        "wal_kb": paced.per_turn("wal") / 1e3,
        "journal_rows": paced.per_turn("journal_rows"),
        "journal_kb": paced.per_turn("journal") / 1e3,
        "turn_kb": turn_kb,
        "bytes_per_text_byte": (burst_kb - turn_kb) * 1e3 / (199 * _BYTES_PER_TOKEN),
        "tool_call_kb": tool.per_turn("other_tables") / 1e3 - turn_kb,
        "worker_mb": memory / 1e6,
        "stream_kb": stream_bytes / 1e3,
        "stream_files": stream_files,
    }
    counts = {
        "worker_connections": int(max(cost.growth["connections"] for cost in (turn, burst, paced, tool))),
        "max_worker_connections": 2 * 5 + 6,
        "worker_files": files,
    }
    rounded: dict[str, float] = {name: float(f"{value:.3g}") for name, value in costs.items()}
    return Costs(measured=f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}", **rounded, **counts)


@contextlib.asynccontextmanager
async def _run_worker() -> AsyncGenerator[MeasuredWorker]:
    with create_work_directory() as directory, stop_at_end() as subjects:
        upstream, tools = UpstreamServer(SharedServers(directory, "", "")), ToolServer(SharedServers(directory, "", ""))
        subjects += [upstream, tools]
        await upstream.start()
        await tools.start()
        shared = SharedServers(directory, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        gateway = GatewayWorkers(shared, 1)
        subjects.append(gateway)
        await gateway.start()
        database = await asyncpg.connect(plain_dsn(embedded_postgres.find_cluster(gateway.data_dir).build_url()))
        try:
            yield MeasuredWorker(gateway, database)
        finally:
            await database.close()


def load_costs() -> Costs:
    return msgspec.json.decode(COSTS_FILE.read_bytes(), type=Costs)


def format_costs(costs: Costs) -> str:
    """Format the costs as the table of docs/scaling.md."""
    rows = [f"| {label} | {getattr(costs, name):g} |" for name, label in LABELS.items()]
    return "\n".join(["| cost | value |", "|---|---|", *rows])


def replace_section(page: str, mark: str, text: str) -> str:
    """Replace the text between `<!-- mark -->` and `<!-- /mark -->`."""
    before, rest = page.split(f"<!-- {mark} -->\n", 1)
    after = rest.split(f"<!-- /{mark} -->", 1)[1]
    return f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write costs.json and docs/scaling.md")
    options = parser.parse_args()
    gc.freeze()
    gc.disable()
    costs = uvloop.run(measure_costs())
    print_line(f"{costs.measured}\n{format_costs(costs)}")
    if options.write:
        from benchmarks.scaling import format_examples

        COSTS_FILE.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
        page = replace_section(
            SCALING_PAGE.read_text(), "costs", f"Measured {costs.measured}.\n\n{format_costs(costs)}"
        )
        SCALING_PAGE.write_text(replace_section(page, "example", format_examples(costs)))


if __name__ == "__main__":
    main()
