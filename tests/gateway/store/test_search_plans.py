"""Tests of the plans and results of searches."""

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.messages import Principal
from gateway.store.database import Database
from gateway.store.history import MAX_RANKED, SEARCH, HistoryStore

# Terms as the application finds them, but for those of the user "old", whose turns are of an older release.
INSERT_MANY = """
INSERT INTO turns (id, owner, status, prompt, response, messages, model_name, parameters, options, has_terms, search)
SELECT uuidv7(), owner, 'completed', prompt, response, '[]', 'm', '{}', '{}',
       owner <> 'old', to_tsvector('simple', prompt || ' ' || response)
FROM (SELECT CASE WHEN n % 2 = 0 THEN 'local' ELSE 'old' END, 'prompt number ' || n / 2, 'answer ' || md5(n::text)
      FROM generate_series(1, 100000) AS n) AS turn (owner, prompt, response)
"""
INSERT_WORDS = """
INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, has_terms, search)
SELECT uuidv7(), owner, 'completed', words, '[]', 'm', '{}', '{}', true, to_tsvector('simple', words)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS turn (owner, words, position) ORDER BY position
"""
ODD_OWNERS = [
    "local",
    "camel",
    "",
    "NULL",
    "{local}",
    '"local"',
    "a,b",
    "a\\b",
    "l'ocal",
    "local ",
    "LOCAL",
    "ö",
    "o\u0308",
]


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> HistoryStore:
    return HistoryStore(database)


async def explain_search(database: Database, owner: str, word: str, terms: str | None = None) -> dict[str, Any]:
    values = {"lang": "simple", "limit": 20, "offset": 0, "after_rank": None, "after_id": None}
    values |= {
        "newest": UUID(int=2**128 - 1),
        "oldest": UUID(int=0),
        "has_prefixes": ":*" in (terms or ""),
        "skipped": 0,
    }
    statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {SEARCH}"
    rows = await database.fetch_rows(
        statement, custom_plan=True, owner=owner, query=word, terms=terms or f"'{word}'", **values
    )
    return rows[0][0][0]["Plan"]


def list_executed_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if plan["Actual Loops"]:
        yield {name: value for name, value in plan.items() if name != "Plans"}
    for child in plan.get("Plans", ()):
        yield from list_executed_nodes(child)


async def test_search_reads_only_the_ranked_rows_of_a_hundred_thousand_turns(
    database: Database, db: asyncpg.Connection
) -> None:
    await db.execute(INSERT_MANY)
    await db.execute("VACUUM ANALYZE turns")
    for owner in ("local", "old"):
        rare, common = [
            list(list_executed_nodes(await explain_search(database, owner, word))) for word in ("777", "prompt")
        ]
        assert "ix_turns_period_search" in json.dumps(rare)
        assert "ix_turns_period_search" not in json.dumps(common)  # the newest turns are read in order
        for nodes in (rare, common):
            assert "Seq Scan" not in json.dumps(nodes)
            assert max(node["Actual Rows"] for node in nodes) <= MAX_RANKED


@pytest.mark.parametrize("terms", ["'zebra'", "'zebra' | 'zebra':*", "'zebra' & 'filler'"])
async def test_search_of_a_user_with_few_turns_reads_no_entries_of_others(
    database: Database, db: asyncpg.Connection, terms: str
) -> None:
    words = ["zebra" if number % 20 == 0 else "camel" for number in range(90)]
    await db.execute(INSERT_WORDS, ["ada"] * 90 + ["bob"] * 4_000, [*words, *["zebra filler"] * 4_000])
    await db.execute("VACUUM ANALYZE turns")
    nodes = list(list_executed_nodes(await explain_search(database, "ada", "zebra", terms)))
    assert "ix_turns_period_search" not in json.dumps(nodes)
    assert max(node["Actual Rows"] for node in nodes) <= 90


async def test_words_are_found_in_the_turns_of_their_owner_alone(store: HistoryStore, db: asyncpg.Connection) -> None:
    """Owners and words are apart in the index, however alike they are."""
    words = [f"turn {number} of a zebra" for number in range(len(ODD_OWNERS))]
    await db.execute(INSERT_WORDS, ODD_OWNERS, words)
    for number, owner in enumerate(ODD_OWNERS):
        for query, found in (
            ("zebra", [words[number]]),
            ("zebra -camel -local", [words[number]]),
            ("camel or local", []),
        ):
            page = await store.search_turns(Principal(owner), query, lang="simple", limit=20)
            assert [hit.prompt for hit in page.items] == found, (owner, query)
            assert await store.count_matches(Principal(owner), query, lang="simple") == len(found)


@pytest.mark.parametrize(
    "words",
    [
        ["zebra"] * 50 + ["camel"] * 150,
        ["camel"] * 150 + ["zebra"] * 50,
        ["zebra", "camel", "camel"] * 60,
        (["zebra"] + ["camel"] * 30) * 8,
        ["zebra"] * 9,
    ],
    ids=["only in old turns", "only in new turns", "common", "rare", "few turns"],
)
async def test_newest_matches_are_found_wherever_a_word_is(
    store: HistoryStore, db: asyncpg.Connection, words: Sequence[str]
) -> None:
    prompts = [f"{word} {number}" for number, word in enumerate(words)]
    await db.execute(INSERT_WORDS, [*["ada"] * len(words), "bob"], [*prompts, "zebra of another"])
    page = await store.search_turns(Principal("ada"), "zebra", lang="simple", limit=200)
    assert [hit.prompt for hit in page.items] == [prompt for prompt in reversed(prompts) if "zebra" in prompt]


INSERT_IN_PERIODS = """
INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, has_terms, search)
SELECT uuidv7(make_interval(secs => -position * $2::int)), 'ada', 'completed', words, '[]', 'm', '{}', '{}', true,
       to_tsvector('simple', words)
FROM unnest($1::text[]) WITH ORDINALITY AS turn (words, position)
"""
DAY = 24 * 60 * 60


@pytest.mark.parametrize(("days", "count"), [(1, 400), (60, 200), (400, 40)])
@pytest.mark.parametrize("query", ["zebra", "zebra -absent", "zebra or absent"])
async def test_matches_of_all_times_are_found_newest_first(
    store: HistoryStore, db: asyncpg.Connection, days: int, count: int, query: str
) -> None:
    prompts = [f"{'camel' if number % 12 else 'zebra'} {number}" for number in range(count)]
    await db.execute(INSERT_IN_PERIODS, prompts, days * DAY)
    zebras = [prompt for prompt in prompts if "zebra" in prompt]
    for lang in ("simple", "english"):
        found, cursor = list[str](), None
        while True:
            page = await store.search_turns(Principal("ada"), query, lang=lang, limit=7, after=cursor)
            found += [hit.prompt for hit in page.items]
            if (cursor := page.next) is None:
                break
        assert found == zebras


@pytest.mark.parametrize("terms", ["'zebra'", "'zebra' | 'zebra':*"])
async def test_search_reads_the_newest_periods_until_enough_match(
    database: Database, db: asyncpg.Connection, terms: str
) -> None:
    prompts = [f"{'camel' if number % 20 else 'zebra'} {number}" for number in range(10_000)]
    await db.execute(INSERT_IN_PERIODS, prompts, DAY // 40)
    await db.execute("VACUUM ANALYZE turns")
    nodes = list(list_executed_nodes(await explain_search(database, "ada", "zebra", terms)))
    scans = [node for node in nodes if node["Node Type"] == "Bitmap Heap Scan"]
    assert MAX_RANKED <= sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= 2 * MAX_RANKED


@pytest.mark.parametrize("deleted", [slice(30), slice(60, None)], ids=["hits that were read", "the rest of the group"])
async def test_turns_deleted_between_two_pages_hide_no_other(
    store: HistoryStore, db: asyncpg.Connection, deleted: slice
) -> None:
    prompts = [f"{'zebra ' * (1 + number % 7)}{number}" for number in range(150)]
    await db.execute(INSERT_WORDS, ["ada"] * len(prompts), prompts)
    group = [hit.id for hit in (await store.search_turns(Principal("ada"), "zebra", lang="simple", limit=100)).items]
    page = await store.search_turns(Principal("ada"), "zebra", lang="simple", limit=60)
    found = [hit.id for hit in page.items]
    await db.execute("DELETE FROM turns WHERE id = ANY($1)", group[deleted])
    while page.next is not None:
        page = await store.search_turns(Principal("ada"), "zebra", lang="simple", limit=60, after=page.next)
        assert page.items
        found += [hit.id for hit in page.items]
    assert len(found) == len(set(found))
    assert {row["id"] for row in await db.fetch("SELECT id FROM turns")} <= set(found)
