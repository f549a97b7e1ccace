"""`python -m benchmarks.costs`: what a turn costs in each part. `--write`: into `costs.json` and `docs/scaling.md`."""

import argparse
import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop

from benchmarks.load import put
from benchmarks.processes import ROOT, Process, resident
from benchmarks.report import machine
from benchmarks.session import directory, say, stopped
from benchmarks.subjects import Surroundings, Tools, Upstream, Workers
from benchmarks.upstream import prompt
from gateway.store.database import plain_dsn
from gateway_runtime import embedded_postgres

FILE = Path(__file__).with_name("costs.json")
PAGE = ROOT / "docs" / "scaling.md"
_STREAMS = 500
_SETTLE_SECONDS, _IDLE_SECONDS = 0.5, 5.0
_BYTES_A_TOKEN = 5
# Transactions that wrote something are those with a number.
_WRITTEN = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS commits, pg_current_wal_insert_lsn() - '0/0' AS wal"""
_KEPT = """
SELECT (SELECT count(*) FROM turn_events) AS journal_rows,
       pg_total_relation_size('turn_events') AS journal,
       (SELECT sum(pg_total_relation_size(oid)) FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'turn_events') AS kept,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS connections"""


class Costs(msgspec.Struct, frozen=True):
    """CPU in milliseconds or microseconds, memory and tables in kB or MB of a thousand. See `LABELS`."""

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
    bytes_a_text_byte: float
    tool_call_kb: float
    worker_mb: float
    stream_kb: float
    worker_connections: int
    worker_connections_most: int
    worker_files: int
    stream_files: float


LABELS = {
    "turn_ms": "gateway: CPU ms a turn, without its tokens",
    "token_us": "gateway: CPU µs a token, in bursts",
    "light_token_us": "gateway: CPU µs a token, 10 ms apart, 50 streams: each is read and written by itself",
    "paced_token_us": "gateway: CPU µs a token, 10 ms apart, 200 streams: a busy worker takes together what has come",
    "tool_call_ms": "gateway: CPU ms a tool call, with the model call behind it",
    "postgres_turn_ms": "Postgres: CPU ms a turn, in bursts of 32",
    "postgres_paced_turn_ms": "Postgres: CPU ms a turn of 100 tokens, 10 ms apart, 200 at once",
    "postgres_tool_call_ms": "Postgres: CPU ms a tool call",
    "commits_alone": "commits a turn, one at a time",
    "commits_busy": "commits a turn, 32 at once",
    "commits_paced": "commits a turn of 100 tokens, 10 ms apart, 200 at once",
    "commits_tool_call": "commits more with a tool call, 16 at once",
    "wal_kb": "WAL: kB a turn of 100 tokens, 10 ms apart",
    "journal_rows": "journal: rows a turn of 100 tokens, 10 ms apart",
    "journal_kb": "journal: kB a turn of 100 tokens, 10 ms apart, with its index",
    "turn_kb": "all other tables: kB a turn, with indexes, without its texts",
    "bytes_a_text_byte": "all other tables: bytes a byte of answer (text, messages, search index)",
    "tool_call_kb": "all other tables: kB a tool call",
    "worker_mb": "memory: MB a worker that has served",
    "stream_kb": "memory: kB an open stream",
    "worker_connections": "connections to Postgres of a worker, under these loads",
    "worker_connections_most": "the same at most (`DATABASE_POOL_SIZE` 5, twice; journal; bus)",
    "worker_files": "open files of a worker",
    "stream_files": "open files a stream",
}


@dataclass
class Spent:
    """What a load has used up. CPU in seconds."""

    turns: int
    server: float
    postgres: float
    rows: dict[str, float]
    tokens: int

    def each(self, name: str) -> float:
        return self.rows[name] / self.turns


class Measured:
    """One worker, and the figures of its processes and of its database."""

    def __init__(self, gateway: Workers, database: asyncpg.Connection) -> None:
        self._gateway = gateway
        self._database = database
        self._idle_commits = 0.0

    @property
    def process(self) -> Process:
        assert self._gateway.process is not None
        return self._gateway.process

    async def idle(self) -> None:
        """What it commits a second while nothing is asked of it."""
        before = (await self.rows())["commits"]
        await asyncio.sleep(_IDLE_SECONDS)
        self._idle_commits = ((await self.rows())["commits"] - before) / (_IDLE_SECONDS + _SETTLE_SECONDS)

    async def rows(self) -> dict[str, float]:
        """Sizes are those after the vacuum that comes some time."""
        await asyncio.sleep(_SETTLE_SECONDS)  # what turns leave to be done after their answers
        figures: dict[str, float] = {}
        for query in (_WRITTEN, _KEPT):
            row = await self._database.fetchrow(query)
            assert row is not None
            figures |= {name: float(value) for name, value in row.items()}
            await self._database.execute("VACUUM")
        return figures

    async def load(self, tokens: int, connections: int, total: int, *, delay_ms: int = 0, tool: bool = False) -> Spent:
        request = self._gateway.request(prompt(tokens, delay_ms, tool=tool), tools=tool)
        await put(self._gateway.port, request, tokens=tokens, connections=min(connections, 8), total=8)
        rows = await self.rows()
        weight = self.process.weigh()
        over = 1.0 if delay_ms else 0.0
        figures = await put(self._gateway.port, request, tokens=tokens, connections=connections, total=total, over=over)
        if figures.errors:
            raise RuntimeError(f"the load had errors: {dict(figures.errors)}")
        await asyncio.sleep(0.1)
        now = self.process.weigh()
        after = await self.rows()
        more = {name: after[name] - rows[name] for name in rows} | {"connections": after["connections"]}
        more["commits"] -= self._idle_commits * (figures.seconds + _SETTLE_SECONDS)
        return Spent(total, now.server - weight.server, now.postgres - weight.postgres, more, tokens * total)

    async def streams(self) -> tuple[float, float]:
        """Bytes and open files more for each stream that is open."""
        pid = self._gateway.workers()[0]
        memory, files = resident([pid]), _files(pid)
        request = self._gateway.request(prompt(4, 2000))
        loading = asyncio.create_task(
            put(self._gateway.port, request, tokens=4, connections=_STREAMS, total=_STREAMS, over=1.0)
        )
        most_memory = most_files = 0
        while not loading.done():
            most_memory, most_files = max(most_memory, resident([pid])), max(most_files, _files(pid))
            await asyncio.sleep(0.1)
        if (await loading).errors:
            raise RuntimeError(f"the streams had errors: {dict(loading.result().errors)}")
        return (most_memory - memory) / _STREAMS, (most_files - files) / _STREAMS

    def files(self) -> int:
        return _files(self._gateway.workers()[0])

    def memory(self) -> int:
        return resident(self._gateway.workers())


def _files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def measure() -> Costs:
    """Start one worker, and put it under one load after the other."""
    async with _running() as measured:
        await measured.idle()
        files = measured.files()
        alone = await measured.load(1, 1, 60)
        turn = await measured.load(1, 32, 640)
        burst = await measured.load(200, 32, 640)
        light = await measured.load(100, 50, 200, delay_ms=10)
        paced = await measured.load(100, 200, 600, delay_ms=10)
        tool = await measured.load(100, 16, 240, tool=True)
        memory = measured.memory()
        stream_bytes, stream_files = await measured.streams()
    turn_ms = turn.server / turn.turns * 1e3
    token_us = (burst.server / burst.turns - turn.server / turn.turns) / 199 * 1e6
    postgres_ms = burst.postgres / burst.turns * 1e3
    costs = {
        "turn_ms": turn_ms,
        "token_us": token_us,
        "light_token_us": (light.server / light.turns * 1e3 - turn_ms) * 10,
        "paced_token_us": (paced.server / paced.turns * 1e3 - turn_ms) * 10,
        "tool_call_ms": tool.server / tool.turns * 1e3 - turn_ms - token_us / 10,
        "postgres_turn_ms": postgres_ms,
        "postgres_paced_turn_ms": paced.postgres / paced.turns * 1e3,
        "postgres_tool_call_ms": tool.postgres / tool.turns * 1e3 - postgres_ms,
        "commits_alone": alone.each("commits"),
        "commits_busy": burst.each("commits"),
        "commits_paced": paced.each("commits"),
        "commits_tool_call": tool.each("commits") - burst.each("commits"),
        "wal_kb": paced.each("wal") / 1e3,
        "journal_rows": paced.each("journal_rows"),
        "journal_kb": paced.each("journal") / 1e3,
        "turn_kb": turn.each("kept") / 1e3,
        "bytes_a_text_byte": (burst.each("kept") - turn.each("kept")) / (199 * _BYTES_A_TOKEN),
        "tool_call_kb": (tool.each("kept") - turn.each("kept")) / 1e3,
        "worker_mb": memory / 1e6,
        "stream_kb": stream_bytes / 1e3,
        "stream_files": stream_files,
    }
    counts = {
        "worker_connections": int(max(s.rows["connections"] for s in (turn, burst, paced, tool))),
        "worker_connections_most": 2 * 5 + 2,
        "worker_files": files,
    }
    rounded: dict[str, Any] = {name: float(f"{value:.3g}") for name, value in costs.items()}
    return Costs(measured=f"{datetime.now(UTC):%Y-%m-%d}, {machine()}", **rounded, **counts)


@contextlib.asynccontextmanager
async def _running() -> AsyncGenerator[Measured]:
    with directory() as place, stopped() as running:
        upstream, tools = Upstream(Surroundings(place, "", "")), Tools(Surroundings(place, "", ""))
        running += [upstream, tools]
        await upstream.start()
        await tools.start()
        around = Surroundings(place, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        gateway = Workers(around, 1)
        running.append(gateway)
        await gateway.start()
        database = await asyncpg.connect(plain_dsn(embedded_postgres.find_cluster(gateway.data).build_url()))
        try:
            yield Measured(gateway, database)
        finally:
            await database.close()


def load() -> Costs:
    return msgspec.json.decode(FILE.read_bytes(), type=Costs)


def table(costs: Costs) -> str:
    """The costs as the page shows them."""
    rows = [f"| {label} | {getattr(costs, name):g} |" for name, label in LABELS.items()]
    return "\n".join(["| what | cost |", "|---|---|", *rows])


def between(page: str, mark: str, text: str) -> str:
    """The page with another text between `<!-- mark -->` and `<!-- /mark -->`."""
    before, rest = page.split(f"<!-- {mark} -->\n", 1)
    after = rest.split(f"<!-- /{mark} -->", 1)[1]
    return f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into costs.json and docs/scaling.md")
    options = parser.parse_args()
    gc.freeze()
    gc.disable()
    costs = uvloop.run(measure())
    say(f"{costs.measured}\n{table(costs)}")
    if options.write:
        from benchmarks.scaling import examples

        FILE.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
        page = between(PAGE.read_text(), "costs", f"Measured {costs.measured}.\n\n{table(costs)}")
        PAGE.write_text(between(page, "example", examples(costs)))


if __name__ == "__main__":
    main()
