"""`python -m benchmarks.table_growth`: search, history and usage with ten times the turns.

It fills the tables with years of turns of a thousand light users and of one heavy user, who has every tenth turn, and
measures the same requests over such tables and over ten times as large ones, alternately. The pace of turns is the
same, so the larger tables hold a longer time. The queries run as the routes run them, without HTTP, whose time would
hide a slower query.
"""

import argparse
import asyncio
import os
import random
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg

from benchmarks.gateway_only import WORDS
from benchmarks.load import compute_percentile
from benchmarks.report import describe_machine
from benchmarks.session import create_work_directory, print_line
from gateway.domain.messages import Principal
from gateway.store import migrations
from gateway.store.database import Database
from gateway.store.history import HistoryStore
from gateway.store.search.vector import build_search_vector
from gateway.store.usage import UsageStore
from gateway.store.usage_report import UsageReports
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn

MAX_RATIO = 1.5
_LIGHT_USERS = 1_000
_SECONDS_PER_TURN = 36
_BATCH = 50_000
_WARM_UP = 20
# A word is in one turn of eighty, `common` is in every turn. Turn 1 is the newest. The terms of these words are those
# of PostgreSQL's parser, which is checked.
_INSERT_TURNS = f"""
INSERT INTO turns (id, owner, status, prompt, response, messages, model_name, parameters, options, created_at,
                   completed_at, has_terms, search)
SELECT id, owner, 'completed', prompt, response,
       jsonb_build_array(jsonb_build_object('role', 'user', 'content', prompt),
                         jsonb_build_object('role', 'assistant', 'content', response)),
       'model-' || n % 5, '{{}}', '{{}}', at, at, true, to_tsvector('simple', prompt || ' ' || response)
FROM (SELECT n, uuidv7(make_interval(secs => -n * {_SECONDS_PER_TURN})) AS id,
             now() - make_interval(secs => n * {_SECONDS_PER_TURN}) AS at,
             CASE WHEN n % 10 = 0 THEN 'heavy' ELSE 'user-' || abs(hashint4(n)) % {_LIGHT_USERS} END AS owner,
             'common ' || pg_temp.words(n, 12) AS prompt, pg_temp.words(-n, 40) AS response
      FROM generate_series($1::int, $2::int) AS n) AS made"""
_INSERT_USAGE = """
INSERT INTO turn_usage (turn_id, owner, key, model_name, status, prompt_tokens, completion_tokens, total_tokens,
                        cached_tokens, reasoning_tokens, queue_time, model_time, generation_time, steps, cost_usd, at)
SELECT id, owner, 'key-' || owner, model_name, status, 100, 50, 150, 20, 10, 0.01, 0.5, 0.4, 1, 0.001, created_at
FROM turns WHERE NOT EXISTS (SELECT FROM turn_usage WHERE turn_id = turns.id)"""
_DROPPED_INDEX = "ix_turns_period_search"

Request = Callable[[], Awaitable[object]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table_growth", description=__doc__)
    parser.add_argument(
        "--turns", type=int, default=100_000, help="number of turns; a second database has ten times as many"
    )
    parser.add_argument("--requests", type=int, default=400, help="requests of each kind")
    parser.add_argument("--directory", type=Path, help="keep the databases here, and use them again")
    parser.add_argument("--only", default="", help="measure only requests whose names contain this")
    options = parser.parse_args()
    if options.directory is not None:
        asyncio.run(_run(options.directory, options))
        return
    with create_work_directory() as directory:
        asyncio.run(_run(directory, options))


async def _run(directory: Path, options: argparse.Namespace) -> None:
    print_line(describe_machine())
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(_open_database(directory / f"{turns}-turns", turns))
            for turns in (options.turns, 10 * options.turns)
        ]
        figures = await _measure_requests(databases, options.requests, options.only)
    _print_table(figures, options.turns)


@asynccontextmanager
async def _open_database(directory: Path, turns: int) -> AsyncGenerator[Database]:
    server = embedded_postgres.start_or_attach(directory)
    try:
        url = server.build_url()
        await asyncio.to_thread(migrations.upgrade_schema, url)
        connection = await asyncpg.connect(plain_dsn(url), timeout=60)
        try:
            await _fill_tables(connection, await connection.fetchval("SELECT count(*) FROM turns"), turns)
        finally:
            await connection.close()
        database = Database(url)
        try:
            yield database
        finally:
            await database.close()
    finally:
        server.stop_if_started_here()


async def _fill_tables(connection: asyncpg.Connection, number: int, turns: int) -> None:
    if number == turns:
        return
    started_at = time.monotonic()
    await connection.execute(WORDS)
    await connection.execute("SET session_replication_role = replica")  # no trigger has work here
    definition = await connection.fetchval("SELECT pg_get_indexdef($1::regclass)", _DROPPED_INDEX)
    await connection.execute(f"DROP INDEX {_DROPPED_INDEX}")
    for first in range(number + 1, turns + 1, _BATCH):
        last = min(first + _BATCH - 1, turns)
        await connection.execute(_INSERT_TURNS, first, last, timeout=600)
    await connection.execute(_INSERT_USAGE, timeout=600)
    await connection.execute("SET maintenance_work_mem = '1GB'")
    await connection.execute(definition, timeout=1200)
    await connection.execute("VACUUM ANALYZE turns, turn_usage", timeout=600)
    await connection.execute("CHECKPOINT", timeout=600)
    await _check_terms(connection)
    size = await connection.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
    print_line(f"{turns:,} turns, {size}, filled in {time.monotonic() - started_at:.0f} s")


async def _check_terms(connection: asyncpg.Connection) -> None:
    """Check that the terms are those that the gateway would store."""
    for row in await connection.fetch("SELECT prompt, response, search::text FROM turns LIMIT 100"):
        vector = build_search_vector(row["prompt"], row["response"])
        if not await connection.fetchval("SELECT $1::text::tsvector = $2::text::tsvector", vector, row["search"]):
            raise RuntimeError(f"the gateway would store other terms: {vector!r}, not {row['search']!r}")


def _build_requests(database: Database, ids: list[UUID]) -> dict[str, Request]:
    """Build the kinds of requests.

    Each is of a random user or of the heavy one.
    """
    history, reports = HistoryStore(database), UsageReports(database)
    usage = UsageStore(database, uuid4())
    generator = random.Random(1)
    heavy = Principal("heavy")

    def pick_user() -> Principal:
        return Principal(f"user-{generator.randrange(_LIGHT_USERS)}")

    def pick_words(number: int) -> str:
        return " ".join(f"w{generator.randrange(4096):03x}" for _ in range(number))

    def search(query: str, principal: Principal, lang: str = "simple") -> Awaitable[object]:
        return history.search_turns(principal, query, lang=lang, limit=20)

    def sum_month(group: str, owner: str | None) -> Awaitable[object]:
        until = datetime.now(UTC)
        return reports.aggregate([group], until - timedelta(days=30), until, owner=owner)  # pyright: ignore[reportArgumentType]

    return {
        "history, newest 50": lambda: history.list_turns(pick_user(), limit=50),
        "history, newest 50, heavy user": lambda: history.list_turns(heavy, limit=50),
        "history, 50 before any turn, heavy user": lambda: history.list_turns(
            heavy, limit=50, before=generator.choice(ids)
        ),
        "search, one word": lambda: search(pick_words(1), pick_user()),
        "search, two words": lambda: search(pick_words(2), pick_user()),
        "search, a word of every turn": lambda: search("common", pick_user()),
        "search, one word, in English": lambda: search(pick_words(1), pick_user(), "english"),
        "search, one word, heavy user": lambda: search(pick_words(1), heavy),
        "search, two words, heavy user": lambda: search(pick_words(2), heavy),
        "search, a word without another, heavy user": lambda: search(f"{pick_words(1)} -{pick_words(1)}", heavy),
        "search, either of two words, heavy user": lambda: search(f"{pick_words(1)} or {pick_words(1)}", heavy),
        "search, a word of every turn, heavy user": lambda: search("common", heavy),
        "search, a word of no turn, heavy user": lambda: search("absent", heavy),
        "usage of 30 days": lambda: sum_month("day", pick_user().user),
        "usage of 30 days, heavy user": lambda: sum_month("day", "heavy"),
        "usage of 30 days, all users by day": lambda: sum_month("day", None),
        "usage of 30 days, all users by user": lambda: sum_month("user", None),
        "budget of a user": lambda: usage.get_totals(pick_user().user),
        "budget of the heavy user": lambda: usage.get_totals("heavy"),
        "statistics of 30 days, all users": lambda: usage.aggregate_by_day(30),
    }


async def _measure_requests(databases: Sequence[Database], requests: int, only: str) -> list[dict[str, "array[float]"]]:
    """Run the kinds in turn, each over all databases.

    So a disturbance of the machine affects all of them.
    """
    kinds: list[dict[str, Request]] = []
    for database in databases:
        rows = await database.fetch_rows("SELECT id FROM turns WHERE owner = 'heavy' ORDER BY random() LIMIT 1000")
        kinds.append(_build_requests(database, [row[0] for row in rows]))
    names = [name for name in kinds[0] if only in name]
    seconds = [{name: array("d") for name in names} for _ in databases]
    for number in range(requests + _WARM_UP):
        for name, index in product(names, range(len(databases))):
            started_at = time.perf_counter()
            await kinds[index][name]()
            if number >= _WARM_UP:
                seconds[index][name].append(time.perf_counter() - started_at)
    return seconds


def _print_table(figures: list[dict[str, "array[float]"]], turns: int) -> None:
    small, large = figures
    print_line(f"| request | {turns:,} turns, p50 / p99 ms | {10 * turns:,} turns, p50 / p99 ms | ratios |")
    print_line("|---|---|---|---|")
    for name in large:
        cells = " | ".join(_format_times(seconds[name]) for seconds in (small, large))
        ratios = [compute_percentile(large[name], part) / compute_percentile(small[name], part) for part in (50, 99)]
        note = f", more than {MAX_RATIO}" if ratios[1] > MAX_RATIO else ""
        print_line(f"| {name} | {cells} | {' / '.join(f'{ratio:.2f}' for ratio in ratios)}{note} |")
    print_line(f"load average: {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def _format_times(seconds: "array[float]") -> str:
    return " / ".join(f"{compute_percentile(seconds, percent) * 1e3:.1f}" for percent in (50, 99))


if __name__ == "__main__":
    main()
