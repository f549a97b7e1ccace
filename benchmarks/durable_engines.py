"""`python -m benchmarks.durable_engines`: compare the gateway's journal with dbos.

Both run the same turn on the same embedded Postgres: a model call that asks for a tool, the tool call, and a model call
whose answer is streamed. `--only costs` measures CPU, transactions and bytes, `--only faults` kills and freezes
workers. The figures are in docs/adr/0022.
"""

import argparse
import asyncio
import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import asyncpg
import uvloop

from benchmarks.engine_faults import measure_faults
from benchmarks.engine_servers import DbosWorker, GatewayOnDatabase
from benchmarks.load import run_load
from benchmarks.processes import list_process_tree, read_cpu_seconds
from benchmarks.report import describe_machine
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import SharedServers, Subject, ToolServer, UpstreamServer
from benchmarks.upstream import build_prompt
from gateway_runtime.embedded_postgres import EmbeddedPostgres, start_or_attach
from gateway_runtime.postgres.url import plain_dsn

_MODES = ("plain", "steps", "flush", "token")
_SETTLE_SECONDS = 0.5
_IDLE_READINGS = 5
_STATISTICS_SECONDS = 11.0
"""Idle backends report their transactions to `pg_stat_database` after 10 s."""
# Only transactions that write get a number, so the number counts commits.
_COMMITS_SQL = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS commits, pg_current_wal_insert_lsn() - '0/0' AS wal"""
_STATISTICS_SQL = """
SELECT xact_commit + xact_rollback AS transactions,
       tup_inserted + tup_updated + tup_deleted AS rows
FROM pg_stat_database WHERE datname = current_database()"""


@dataclass(frozen=True)
class Variant:
    """Server that runs the turn. The mode tells what dbos stores."""

    name: str
    server: Subject
    database: asyncpg.Connection
    mode: str = ""

    def build_request(self, tokens: int, delay_ms: int) -> bytes:
        if isinstance(self.server, DbosWorker):
            self.server.mode = self.mode
        return self.server.build_request(build_prompt(tokens, delay_ms, tool=True), tools=True)


@dataclass(frozen=True)
class Load:
    """Turns of one size."""

    name: str
    tokens: int
    delay_ms: int
    connections: int
    total: int


SHORT = Load("1 token, 16 at once", 1, 0, 16, 96)
PACED = Load("100 tokens at 10 ms, 16 at once", 100, 10, 16, 48)
ALONE = Load("100 tokens at 10 ms, 1 at once", 100, 10, 1, 3)
Figures = dict[str, float]


class CostMeasurement:
    """Runs loads and reads counters before and after each."""

    def __init__(self, variants: list[Variant]) -> None:
        self._variants = variants
        self._idle: Figures = {}
        """Commits and WAL bytes of all servers, per second."""

    async def measure_idle(self) -> dict[str, Figures]:
        """Measure the work of idle servers, per second.

        Commits and WAL belong to all servers. They are medians, because background work comes in bursts.
        """
        await asyncio.sleep(_STATISTICS_SECONDS)  # the statistics of the start arrive late
        before = {variant.name: await self._read_all(variant) for variant in self._variants}
        started_at = time.monotonic()
        readings = [before[self._variants[0].name]]
        for _ in range(_IDLE_READINGS):
            await asyncio.sleep(_STATISTICS_SECONDS / _IDLE_READINGS)
            readings.append(await self._read_all(self._variants[0]))
        seconds = time.monotonic() - started_at
        idle: dict[str, Figures] = {}
        for variant in self._variants:
            after = await self._read_all(variant)
            idle[variant.name] = {name: (after[name] - before[variant.name][name]) / seconds for name in after}
        self._idle = {
            name: statistics.median(
                (later[name] - earlier[name]) / seconds * _IDLE_READINGS for earlier, later in pairwise(readings)
            )
            for name in ("commits", "wal")
        }
        return idle

    async def _read_all(self, variant: Variant) -> Figures:
        return await self._read(variant) | await _read_row(variant, _STATISTICS_SQL)

    async def measure_load(self, variant: Variant, load: Load) -> Figures:
        """Return figures per turn, without the work of idle servers."""
        request = variant.build_request(load.tokens, load.delay_ms)
        port = variant.server.port
        await run_load(port, request, tokens=load.tokens, connections=min(4, load.connections), total=4)
        await asyncio.sleep(_SETTLE_SECONDS)
        before, started_at = await self._read(variant), time.monotonic()
        stats = await run_load(
            port, request, tokens=load.tokens, connections=load.connections, total=load.total, timeout_seconds=60
        )
        if stats.errors:
            raise RuntimeError(f"{variant.name}: the load had errors: {dict(stats.errors)}")
        await asyncio.sleep(_SETTLE_SECONDS)
        after, seconds = await self._read(variant), time.monotonic() - started_at
        figures = {name: after[name] - before[name] for name in after}
        for name in ("commits", "wal"):
            figures[name] -= self._idle[name] * seconds
        return {name: value / load.total for name, value in figures.items()}

    async def count_rows(self, variant: Variant, load: Load, idle: Figures) -> Figures:
        """Return transactions (with those that only read) and rows written, per turn."""
        request = variant.build_request(load.tokens, load.delay_ms)
        before, started_at = await _read_row(variant, _STATISTICS_SQL), time.monotonic()
        await run_load(variant.server.port, request, tokens=load.tokens, connections=load.connections, total=load.total)
        await asyncio.sleep(_STATISTICS_SECONDS)
        after, seconds = await _read_row(variant, _STATISTICS_SQL), time.monotonic() - started_at
        return {name: (after[name] - before[name] - idle[name] * seconds) / load.total for name in after}

    async def _read(self, variant: Variant) -> Figures:
        assert variant.server.process is not None
        usage = variant.server.process.measure_usage()
        row = await _read_row(variant, _COMMITS_SQL)
        return {"server_ms": usage.server_seconds * 1e3, "postgres_ms": _measure_postgres_ms(), **row}


async def _read_row(variant: Variant, query: str) -> Figures:
    row = await variant.database.fetchrow(query)
    assert row is not None
    return {name: float(value) for name, value in row.items()}


def _measure_postgres_ms() -> float:
    """Measure the CPU of the Postgres that this process started."""
    total = 0.0
    for pid in list_process_tree(os.getpid()):
        try:
            seconds, name = read_cpu_seconds(pid)
        except (OSError, IndexError):
            continue  # the process has ended in the meantime
        total += seconds * 1e3 if name == "postgres" else 0.0
    return total


async def measure_costs(directory: Path, postgres: EmbeddedPostgres, rounds: int) -> None:
    """Print the costs of all variants."""
    with stop_at_end() as running:
        shared = await _start_shared_servers(directory, running)
        gateway, dbos = GatewayOnDatabase(shared, postgres), DbosWorker(shared, postgres)
        for server in (gateway, dbos):
            running.append(server)
            await server.start()
            print_line(f"{server.name}: ready in {server.ready_seconds:.1f} s")
        await _measure_servers(gateway, dbos, rounds)


async def _measure_servers(gateway: GatewayOnDatabase, dbos: DbosWorker, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        databases = [await asyncpg.connect(plain_dsn(server.database_url)) for server in (gateway, dbos)]
        for database in databases:
            stack.push_async_callback(database.close)
        variants = [
            Variant("gateway", gateway, databases[0]),
            *(Variant(f"dbos {mode}", dbos, databases[1], mode) for mode in _MODES),
        ]
        measurement = CostMeasurement(variants)
        idle = await measurement.measure_idle()
        for name in ("gateway", "dbos plain"):
            print_line(f"idle {name}: {_format(idle[name])} per second")
        figures: dict[tuple[str, str], list[Figures]] = {}
        for number in range(rounds):
            for load in (SHORT, PACED, ALONE):
                for variant in variants:
                    result = await measurement.measure_load(variant, load)
                    figures.setdefault((load.name, variant.name), []).append(result)
                    print_line(f"round {number + 1}, {load.name}, {variant.name}: {_format(result)}")
        counts = {
            variant.name: await measurement.count_rows(variant, PACED, idle[variant.name]) for variant in variants
        }
    _print_table(variants, figures, counts)


def _format(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _print_table(
    variants: list[Variant], figures: dict[tuple[str, str], list[Figures]], counts: dict[str, Figures]
) -> None:
    """Print a Markdown table of medians and ranges."""
    columns: dict[str, Callable[[str], list[float]]] = {
        "CPU ms/turn": lambda name: [f["server_ms"] for f in figures[SHORT.name, name]],
        "CPU µs/token": lambda name: [
            (paced["server_ms"] - short["server_ms"]) / (PACED.tokens - 1) * 1e3
            for paced, short in zip(figures[PACED.name, name], figures[SHORT.name, name], strict=True)
        ],
        "Postgres ms/turn": lambda name: [f["postgres_ms"] for f in figures[PACED.name, name]],
        "commits/turn, 1 at once": lambda name: [f["commits"] for f in figures[ALONE.name, name]],
        "16 at once": lambda name: [f["commits"] for f in figures[PACED.name, name]],
        "transactions/turn": lambda name: [counts[name]["transactions"]],
        "rows/turn": lambda name: [counts[name]["rows"]],
        "WAL kB/turn": lambda name: [f["wal"] / 1e3 for f in figures[PACED.name, name]],
    }
    print_line("| variant | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for variant in variants:
        cells = []
        for get_values in columns.values():
            values = get_values(variant.name)
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.3g}{spread}")
        print_line(f"| {variant.name} | " + " | ".join(cells) + " |")


async def _run(options: argparse.Namespace) -> None:
    if (reason := DbosWorker.install_package()) is not None:
        sys.exit(f"dbos is missing: {reason}")
    with create_work_directory() as directory:
        postgres = start_or_attach(directory / "postgres")
        try:
            if options.only != "faults":
                await measure_costs(directory, postgres, options.rounds)
            if options.only != "costs":
                await measure_faults(directory, postgres, options.rounds, options.fault)
        finally:
            postgres.stop_if_started_here()
    print_line(f"Machine: {describe_machine()}")


async def _start_shared_servers(directory: Path, running: list[Subject]) -> SharedServers:
    upstream, tools = (server(SharedServers(directory, "", "")) for server in (UpstreamServer, ToolServer))
    for server in (upstream, tools):
        running.append(server)
        await server.start()
    return SharedServers(directory, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable_engines", description=__doc__)
    parser.add_argument("--only", choices=("costs", "faults"), help="measure only a part")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each load and fault")
    parser.add_argument("--fault", default="", help="run only faults whose names contain this")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.freeze()
    gc.disable()
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
