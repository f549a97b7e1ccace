"""Search for words of any script, in new and old turns."""

# ruff: noqa: RUF001 - the texts have characters that look like others

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import pytest

from gateway.simulator import Simulator
from gateway.store.database import Database, DatabaseRow
from gateway.store.search.indexer import SearchIndexer
from tests.eventually import eventually
from tests.gateway.api.test_history import INSERT, search
from tests.stack import Gateway, ServeSharedGateway, serve_gateway

PROMPTS = [
    "数据库连接池的配置在哪里？",
    "東京でコーヒーを飲みたい",
    "한국어를 공부합니다",
    "Restart with /etc/nginx/nginx.conf please",
    "Forward it to anna.schmidt@example.com",
    "Return a List<UserName> here",
    "It costs 5€/Monat, doesn't it?",
    "Ein Café in Łódź",
]
FOUND = {
    "连接池": 0,
    "池": 0,
    "コーヒー": 1,
    "東京": 1,
    "한국어": 2,
    "nginx": 3,
    "nginx.conf": 3,
    "schmidt": 4,
    "username": 5,
    "user": 5,
    "monat": 6,
    "cafe": 7,
    "CAFÉ lodz": 7,
}
WAITING = "SELECT count(*) FROM turns WHERE NOT has_terms"


@pytest.fixture
async def gateway(gateway: Gateway) -> Gateway:
    """A gateway without its own indexer: tests index themselves."""
    [indexer] = [task for task in gateway.state.tasks if task.name == "search indexer"]
    await indexer.stop()
    return gateway


@pytest.fixture(scope="module")
async def gateway_with_turns(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    gateway = await serve_shared_gateway()
    for prompt in PROMPTS:
        assert (await gateway.chat(prompt, tools=[])).status == 200
    return gateway


@pytest.mark.parametrize("query", FOUND)
async def test_word_is_found_as_soon_as_its_turn_has_ended(gateway_with_turns: Gateway, query: str) -> None:
    hits = await search(gateway_with_turns, query)
    assert [hit["prompt"] for hit in hits] == [PROMPTS[FOUND[query]]]
    assert "<mark>" in hits[0]["snippet"]
    page = (await gateway_with_turns.get("/api/v1/search", params={"query": query, "total": "true"})).body
    assert page["total"] == 1


async def test_release_0_1_0_finds_words_of_new_turns(gateway: Gateway, db: asyncpg.Connection) -> None:
    assert (await gateway.chat("Where do camels live?", tools=[])).status == 200
    assert await db.fetchval(WAITING) == 0
    statement = "SELECT count(*) FROM turns WHERE search @@ websearch_to_tsquery('simple', $1)"
    assert [await db.fetchval(statement, query) for query in ("CAMELS live", '"camels live"', "zebra")] == [1, 1, 0]


async def test_stems_of_a_language_match_words_without_accents(gateway: Gateway, db: asyncpg.Connection) -> None:
    await db.execute(INSERT, "local", "Deux cafes fermés", "")
    await SearchIndexer(gateway.state.database).index_batch()
    assert len(await search(gateway, "café fermée", lang="french")) == 1
    assert len(await search(gateway, "des cafés", lang="french")) == 1
    assert len(await search(gateway, "fermons", lang="simple")) == 0


async def test_old_turns_are_indexed_in_the_background(
    database_url: str, db: asyncpg.Connection, simulator: Simulator
) -> None:
    await db.executemany(INSERT, [("local", prompt, f"{number}") for number, prompt in enumerate(PROMPTS * 20)])
    async with serve_gateway(database_url, simulator, None) as gateway:
        assert len(await search(gateway, "Forward", limit=50)) == 20  # whole words, also before
        await eventually(lambda: _is_indexed(db))
        assert len(await search(gateway, "schmidt", limit=50)) == 20
        assert len(await search(gateway, "连接池", limit=50)) == 20


async def _is_indexed(db: asyncpg.Connection) -> bool:
    return await db.fetchval(WAITING) == 0


async def test_long_turn_is_indexed_after_its_end(gateway: Gateway, db: asyncpg.Connection) -> None:
    await gateway.chat("lorem " * 1_000 + "数据库连接池", tools=[])
    assert await db.fetchval(WAITING) == 1
    assert len(await search(gateway, "lorem")) == 1  # a word of PostgreSQL's parser
    assert await SearchIndexer(gateway.state.database).index_batch() == 1
    assert len(await search(gateway, "连接池")) == 1


async def test_old_and_new_turns_are_ranked_and_counted_together(gateway: Gateway, db: asyncpg.Connection) -> None:
    await gateway.chat("camel", tools=[])
    await db.execute(INSERT, "local", "camel camel", "")
    page = (await gateway.get("/api/v1/search?query=camel&total=true")).body
    assert (len(page["items"]), page["total"]) == (2, 2)
    assert await db.fetchval(WAITING) == 1
    assert len(await search(gateway, "-zebra")) == 2
    assert len(await search(gateway, "-camel")) == 0


async def test_indexers_share_the_turns_and_leave_those_that_run_or_are_locked(
    database_url: str, db: asyncpg.Connection
) -> None:
    await db.executemany(INSERT, [("local", f"turn {number}", "") for number in range(40)])
    await db.executemany(INSERT.replace("'completed'", "'running'"), [("local", "running", "")])
    await db.executemany(INSERT.replace("'completed'", "'waiting'"), [("local", "waiting", "")])
    locked = await db.fetchval("SELECT id FROM turns WHERE prompt = 'turn 7'")
    database = Database(database_url)
    try:
        async with db.transaction():
            await db.execute("SELECT FROM turns WHERE id = $1 FOR UPDATE", locked)
            indexers = [SearchIndexer(database) for _ in range(3)]
            counts = await asyncio.gather(*(indexer.index_batch(rows=20) for indexer in indexers))
            while more := await indexers[0].index_batch(rows=20):
                counts.append(more)
        assert sum(counts) == 39
        rows = await db.fetch("SELECT prompt FROM turns WHERE NOT has_terms ORDER BY prompt")
        assert [row["prompt"] for row in rows] == ["running", "turn 7", "waiting"]
        assert await _index_all(database) == [1, 0]
    finally:
        await database.close()


async def _index_all(database: Database) -> list[int]:
    return [await SearchIndexer(database).index_batch() for _ in range(2)]


async def test_turn_that_was_claimed_or_changed_meanwhile_is_not_indexed(
    database_url: str, db: asyncpg.Connection
) -> None:
    await db.executemany(INSERT, [("local", f"turn {number}", "") for number in range(3)])
    changes = [
        "UPDATE turns SET epoch = epoch + 1 WHERE prompt = 'turn 0'",
        "UPDATE turns SET status = 'running' WHERE prompt = 'turn 1'",
    ]
    database = _ChangingDatabase(database_url, db, changes)
    try:
        assert await SearchIndexer(database).index_batch() == 1
    finally:
        await database.close()
    rows = await db.fetch("SELECT prompt FROM turns WHERE NOT has_terms ORDER BY prompt")
    assert [row["prompt"] for row in rows] == ["turn 0", "turn 1"]


class _ChangingDatabase(Database):
    """A database whose turns another worker changes after the first read."""

    def __init__(self, url: str, other: asyncpg.Connection, changes: list[str]) -> None:
        super().__init__(url)
        self._other = other
        self._changes = changes

    async def fetch_rows(self, statement: str, *, custom_plan: bool = False, **values: object) -> Sequence[DatabaseRow]:
        rows = await super().fetch_rows(statement, custom_plan=custom_plan, **values)
        while self._changes:
            await self._other.execute(self._changes.pop())
        return rows


async def test_turn_that_is_deleted_while_it_is_indexed_stays_deleted(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn = UUID((await gateway.chat("lorem " * 1_000, tools=[])).body["turn_id"])
    await asyncio.gather(SearchIndexer(gateway.state.database).index_batch(), db.execute("DELETE FROM turns"))
    assert await db.fetchval("SELECT count(*) FROM turns WHERE id = $1", turn) == 0
