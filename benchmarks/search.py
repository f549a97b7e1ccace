"""`python -m benchmarks.search`: compare the search with that of release 0.1.0.

Both search the same 100,000 turns in one run, request by request in turn, so a disturbance of the machine affects both.
`--turns` and `--requests` set the sizes.
"""

import argparse
import asyncio
import os
import random
import time
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from benchmarks.gateway_only import WORDS
from benchmarks.load import compute_percentile
from benchmarks.session import create_work_directory, print_line
from gateway.domain.messages import Principal
from gateway.store import migrations
from gateway.store.database import Database
from gateway.store.history import HistoryStore
from gateway.store.search.indexer import SearchIndexer
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn

MAX_RATIO = 1.5
_NEW = "Chinese (found only by this search)"
_OWNER = "local"
_LIMIT = 20
_WARM_UP = 20
# As in `benchmarks.gateway_only`: a word is in about one turn of eighty, `common` is in every turn. One turn of ten has
# a path, an address and Chinese text.
_INSERT = """
INSERT INTO {table} (id, owner, status, prompt, response, messages, model_name, parameters, options)
SELECT uuidv7(), 'local', 'completed',
       'common ' || pg_temp.words(n, 12) || CASE WHEN n % 10 = 0 THEN
           ' /srv/' || left(md5(n::text), 2) || '/app.conf user' || n % 97 || '@example.com 数据库连接池的配置'
       ELSE '' END,
       pg_temp.words(-n, 40), '[]', 'bench', '{{}}', '{{}}'
FROM generate_series(1, $1::int) AS n"""
# The statement of release 0.1.0.
_QUERY = """(websearch_to_tsquery('simple', :query) || CASE cast(:lang AS regconfig) WHEN 'simple'::regconfig
THEN ''::tsquery ELSE regexp_replace(websearch_to_tsquery(cast(:lang AS regconfig), :query)::text,
'''(?=\\s|\\)|$)', ''':*', 'g')::tsquery END)"""
_EARLIER_SEARCH = f"""
WITH hits AS MATERIALIZED (
    SELECT id, rank FROM (
        SELECT id, ts_rank_cd(earlier, {_QUERY}) AS rank
        FROM (SELECT id, earlier FROM earlier_turns WHERE owner = :owner AND earlier @@ {_QUERY}
              ORDER BY id DESC LIMIT 500) AS newest
    ) AS ranked
    ORDER BY rank DESC, id DESC LIMIT :limit
)
SELECT id, conversation_id, prompt, response, model_name, status, created_at, rank,
       ts_headline(cast(:lang AS regconfig), "left"(prompt || ' ' || response, 20000), {_QUERY},
                   'StartSel=<mark>, StopSel=</mark>, MaxFragments=2, MaxWords=24, MinWords=8') AS snippet
FROM hits JOIN earlier_turns USING (id) ORDER BY rank DESC, id DESC
"""
# A table of its own: with both vectors, a row would be so long that PostgreSQL stores one of them elsewhere.
_EARLIER_TABLE = """
CREATE TABLE earlier_turns (LIKE turns INCLUDING ALL);
ALTER TABLE earlier_turns DROP COLUMN search;
ALTER TABLE earlier_turns ADD COLUMN earlier TSVECTOR GENERATED ALWAYS AS (
    to_tsvector('simple'::regconfig, left(prompt, 50000) || ' ' || left(response, 50000))) STORED;
CREATE INDEX ix_turns_earlier ON earlier_turns USING gin (earlier)"""
_SIZES = """
SELECT pg_relation_size('ix_turns_earlier')::float8 / count(*) AS earlier_index,
       pg_relation_size('ix_turns_period_search')::float8 / count(*) AS index,
       (SELECT avg(pg_column_size(earlier)) FROM earlier_turns)::float8 AS earlier_column,
       avg(pg_column_size(search))::float8 AS column,
       avg(octet_length(prompt) + octet_length(response))::float8 AS text
FROM turns
"""
Search = Callable[[str, str], Awaitable[object]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=400, help="requests of each kind, with each search")
    options = parser.parse_args()
    with create_work_directory() as directory:
        asyncio.run(_compare(directory, options.turns, options.requests))


async def _compare(directory: Path, turns: int, requests: int) -> None:
    server = embedded_postgres.start_or_attach(directory / "postgres")
    try:
        url = server.build_url()
        await asyncio.to_thread(migrations.upgrade_schema, url)
        connection = await asyncpg.connect(plain_dsn(url))
        database = Database(url)
        try:
            await connection.execute(WORDS)
            await connection.execute(_EARLIER_TABLE)
            for table in ("turns", "earlier_turns"):
                await connection.execute(_INSERT.format(table=table), turns, timeout=600)
            await _index_turns(database, turns)
            await connection.execute("VACUUM ANALYZE turns, earlier_turns", timeout=600)
            sizes = await connection.fetchrow(_SIZES)
            for label, query in _build_queries().items():
                await _measure(database, label, query, requests)
        finally:
            await connection.close()
            await database.close()
    finally:
        server.stop_if_started_here()
    assert sizes is not None
    print_line(
        f"bytes a turn of {sizes['text']:.0f} bytes of text: index {sizes['index']:.0f} (earlier one"
        f" {sizes['earlier_index']:.0f}), column {sizes['column']:.0f} (earlier one {sizes['earlier_column']:.0f})"
    )
    print_line(f"load average: {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


async def _index_turns(database: Database, turns: int) -> None:
    indexer = SearchIndexer(database)
    started_at = time.monotonic()
    while await indexer.index_batch(rows=500):
        pass
    seconds = time.monotonic() - started_at
    print_line(f"{turns:,} old turns indexed in {seconds:.0f} s without pauses: {seconds / turns * 1e3:.2f} ms a turn")


def _build_queries() -> dict[str, Callable[[], tuple[str, str]]]:
    """Build the kinds of requests.

    Each is a function that returns a query and its language.
    """
    generator = random.Random(1)

    def pick_words(number: int) -> str:
        return " ".join(f"w{generator.randrange(4096):03x}" for _ in range(number))

    return {
        "two words": lambda: (pick_words(2), "simple"),
        "one word (in one turn of eighty)": lambda: (pick_words(1), "simple"),
        "a word that is in every turn": lambda: ("common", "simple"),
        "one word, in English": lambda: (pick_words(1), "english"),
        "either of two words": lambda: (pick_words(1) + " or " + pick_words(1), "simple"),
        "a word, without another": lambda: (pick_words(1) + " -" + pick_words(1), "simple"),
        "a mail address": lambda: (f"user{generator.randrange(97)}@example.com", "simple"),
        _NEW: lambda: ("连接池", "simple"),
    }


async def _measure(database: Database, label: str, build: Callable[[], tuple[str, str]], requests: int) -> None:
    history, principal = HistoryStore(database), Principal(_OWNER)

    async def search_earlier(query: str, lang: str) -> object:
        if lang != "simple":
            await database.fetch_rows("SELECT cfgname FROM pg_ts_config")
        return await database.fetch_rows(
            _EARLIER_SEARCH, custom_plan=True, owner=_OWNER, query=query, lang=lang, limit=_LIMIT
        )

    async def search(query: str, lang: str) -> object:
        return await history.search_turns(principal, query, lang=lang, limit=_LIMIT)

    searches: list[tuple[Search, array[float]]] = [(search_earlier, array("d")), (search, array("d"))]
    for number in range(requests + _WARM_UP):
        query, lang = build()
        for run, seconds in searches if number % 2 else reversed(searches):
            started_at = time.perf_counter()
            await run(query, lang)
            if number >= _WARM_UP:
                seconds.append(time.perf_counter() - started_at)
    (_, earlier), (_, current) = searches
    p50, p99 = ([compute_percentile(seconds, percent) * 1e3 for seconds in (earlier, current)] for percent in (50, 99))
    ratio = p99[1] / p99[0]
    print_line(
        f"{label}: p50 {p50[1]:.1f} ms (earlier {p50[0]:.1f}), p99 {p99[1]:.1f} ms (earlier {p99[0]:.1f}):"
        f" {ratio:.2f} times{f', more than {MAX_RATIO}' if ratio > MAX_RATIO and label != _NEW else ''}"
    )


if __name__ == "__main__":
    main()
