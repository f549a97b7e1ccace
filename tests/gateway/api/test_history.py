"""History and full-text search."""

from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from gateway.store.history import MAX_RANKED
from tests.stack import Gateway, ServeSharedGateway, insert_rows

INSERT = """
INSERT INTO turns (id, owner, status, prompt, response, messages, model_name, parameters, options)
VALUES (gen_random_uuid(), $1, 'completed', $2, $3, '[]', 'm', '{}', '{}')
"""


@pytest.fixture(scope="module")
async def gateway_with_turns(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    """A gateway with a few stored turns."""
    turns = [
        ("local", "Where do camels live?", "Camels live in deserts."),
        ("local", "Do zebras run?", "A zebra runs; running zebras are fast."),
        ("local", "A naïve café in Zürich", "Ein Läufer läuft."),
        ("another user", "camels of others", "secret"),
    ]
    gateway = await serve_shared_gateway()
    await insert_rows(gateway, INSERT, turns)
    return gateway


async def search(gateway: Gateway, query: str, **options: Any) -> list[Any]:
    parameters = "".join(f"&{name}={value}" for name, value in options.items())
    reply = await gateway.get(f"/api/v1/search?query={quote(query)}{parameters}")
    assert reply.status == 200, reply.body
    return reply.body["items"]


async def test_history_is_paged_without_a_gap(gateway: Gateway) -> None:
    for n in range(5):
        await gateway.chat(f"Prompt {n}")
    prompts: list[str] = []
    path = "/api/v1/history?limit=2&total=true"
    while True:
        page = (await gateway.get(path)).body
        prompts += [item["prompt"] for item in page["items"]]
        assert page["total"] == 5
        if page["next"] is None:
            break
        path = f"/api/v1/history?limit=2&total=true&before={page['next']}"
    assert prompts == [f"Prompt {n}" for n in (4, 3, 2, 1, 0)]
    by_offset = (await gateway.get("/history?limit=2&offset=3")).body
    assert [item["prompt"] for item in by_offset["items"]] == ["Prompt 1", "Prompt 0"]
    item = by_offset["items"][0]
    assert (await gateway.get(f"/history/{item['id']}")).body == item


async def test_search_ranks_and_marks_only_turns_of_the_caller(gateway_with_turns: Gateway) -> None:
    (hit,) = await search(gateway_with_turns, "camels")
    assert hit["prompt"] == "Where do camels live?"
    assert "<mark>camels</mark>" in hit["snippet"]
    assert hit["rank"] > 0
    assert (await gateway_with_turns.get("/search?query=camels")).body["items"] == [hit]


@pytest.mark.parametrize(
    ("query", "options", "prompts"),
    [
        ("camels OR zebra", {}, 2),
        ('"live in deserts"', {}, 1),
        ("camels -deserts", {}, 0),
        ("zebras", {}, 1),
        ("desert", {}, 0),
        ("desert", {"lang": "english"}, 1),
        ("run", {"lang": "english"}, 1),
        ("fast running", {"lang": "english"}, 1),
        ("café Zürich", {}, 1),
        ("the", {"lang": "english"}, 0),
        ("!!! ' & | :* \\", {}, 0),
        ("'); DROP TABLE turns; --", {"lang": "english"}, 0),
    ],
)
async def test_search_supports_operators_phrases_and_stemming(
    gateway_with_turns: Gateway, query: str, options: dict[str, str], prompts: int
) -> None:
    assert len(await search(gateway_with_turns, query, **options)) == prompts


async def test_search_is_paged_by_rank(gateway: Gateway, db: asyncpg.Connection) -> None:
    await db.executemany(INSERT, [("local", "camel " * n, "") for n in range(1, 8)])
    prompts: list[str] = []
    path = "/api/v1/search?query=camel&limit=3&total=true"
    while True:
        page = (await gateway.get(path)).body
        prompts += [item["prompt"] for item in page["items"]]
        assert page["total"] == 7
        if page["next"] is None:
            break
        path = f"/api/v1/search?query=camel&limit=3&total=true&before={page['next']}"
    assert prompts == ["camel " * n for n in range(7, 0, -1)]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/search",
        "/api/v1/search?query=",
        "/api/v1/search?query=x&lang=unknown",
        "/api/v1/search?query=x&limit=0",
        "/api/v1/search?query=x&limit=201",
        "/api/v1/search?query=x&before=nonsense",
        "/api/v1/search?query=x&before=1e300_00000000-0000-0000-0000-000000000001",
        "/api/v1/search?query=x&before=1.0",
        f"/api/v1/search?query=x&before=1.0{3 * '_00'}",
        "/api/v1/search?query=x&before=inf_00000000000000000000000000000001_1",
        "/api/v1/history?before=nonsense",
        "/history?offset=-1",
        "/history/nonsense",
    ],
)
async def test_invalid_query_is_a_422(shared_gateway: Gateway, path: str) -> None:
    assert (await shared_gateway.get(path)).status == 422


async def test_pages_of_a_search_reach_all_matches_from_the_newest_group_on(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    insert_newer = INSERT.replace("gen_random_uuid()", "uuidv7()")
    prompts = [f"{'camel ' * (1 + number % 3)}{number}" for number in range(2 * MAX_RANKED + 30)]
    await db.executemany(insert_newer, [("local", prompt, "") for prompt in prompts])
    newest_first = prompts[::-1]
    groups = [newest_first[first : first + MAX_RANKED] for first in range(0, len(prompts), MAX_RANKED)]
    expected = [prompt for group in groups for prompt in sorted(group, key=lambda text: -text.count("camel"))]
    for limit in (200, 40, 33):
        found, cursor = list[str](), ""
        while True:
            page = (await gateway.get(f"/api/v1/search?query=camel&limit={limit}&total=true{cursor}")).body
            assert page["total"] == len(prompts)
            found += [item["prompt"] for item in page["items"]]
            if page["next"] is None:
                break
            cursor = f"&before={page['next']}"
        assert found == expected
    for offset in (0, 1, MAX_RANKED - 1, MAX_RANKED, 2 * MAX_RANKED + 5, len(prompts), 1_000_000):
        items = (await gateway.get(f"/search?query=camel&limit=150&offset={offset}")).body["items"]
        assert [item["prompt"] for item in items] == expected[offset : offset + 150]


async def test_search_goes_on_from_the_cursor_of_an_older_release(gateway: Gateway, db: asyncpg.Connection) -> None:
    await db.executemany(
        INSERT.replace("gen_random_uuid()", "uuidv7()"), [("local", f"camel {n}", "") for n in range(5)]
    )
    items = (await gateway.get("/api/v1/search?query=camel&limit=2")).body["items"]
    cursor = f"{items[-1]['rank']!r}_{items[-1]['id']}"
    page = (await gateway.get(f"/api/v1/search?query=camel&before={cursor}")).body
    assert [item["prompt"] for item in page["items"]] == ["camel 2", "camel 1", "camel 0"]
