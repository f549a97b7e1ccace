import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from mcp import Client

from tests.tools_server.conftest import NO_DATABASE, closed_port, serve_web, settings, text_of
from tools_server.server import create_server
from tools_server.tasks.store import TaskStore
from tools_server.web_search import JsonBackend, SearchFailed, SearchResult, create_backend

ANSWER = {
    "results": [
        {"title": "Python", "url": "https://www.python.org/", "content": "A language. " * 100, "score": 3},
        {"title": "No address"},
        {"title": None, "url": "https://docs.python.org/"},
    ]
}


async def searxng(request: web.Request) -> web.Response:
    assert request.path == "/search"
    assert request.query["format"] == "json"
    return web.json_response(ANSWER if request.query["q"] == "python" else {"results": []})


async def search(**values: Any) -> Any:
    query = values.pop("query", "python")
    max_results = values.pop("max_results", 5)
    async with Client(create_server(settings(**values), TaskStore(NO_DATABASE))) as client:
        return await client.call_tool("web_search", {"query": query, "max_results": max_results})


async def test_hits_have_title_address_and_snippet() -> None:
    async with serve_web(searxng) as address:
        result = await search(search_backend="searxng", searxng_url=f"{address}/search")
    assert not result.is_error
    assert text_of(result).startswith("1. Python\nhttps://www.python.org/\nA language.")
    hits = result.structured_content["results"]
    assert [hit["url"] for hit in hits] == ["https://www.python.org/", "https://docs.python.org/"]
    assert len(hits[0]["snippet"]) == 500


async def test_no_more_hits_than_asked_for() -> None:
    async with serve_web(searxng) as address:
        result = await search(search_backend="searxng", searxng_url=address, max_results=1)
    assert len(result.structured_content["results"]) == 1


async def test_nothing_found_is_an_answer() -> None:
    async with serve_web(searxng) as address:
        result = await search(search_backend="searxng", searxng_url=address, query="qwxz")
    assert not result.is_error
    assert "Nothing was found" in text_of(result)


async def test_without_a_network_the_model_is_told_so() -> None:
    result = await search(search_backend="searxng", searxng_url=f"http://127.0.0.1:{closed_port()}")
    assert result.is_error
    assert "cannot be reached from here; the network may be unavailable" in text_of(result)


async def refused(*_: Any) -> web.Response:
    return web.Response(status=429)


async def not_json(*_: Any) -> web.Response:
    return web.Response(text="<html>")


async def wrong_shape(*_: Any) -> web.Response:
    return web.json_response({"results": "none"})


async def endless(*_: Any) -> web.Response:
    return web.Response(body=b" " * (3 * 1024 * 1024))


async def silent(*_: Any) -> web.Response:
    await asyncio.sleep(600)
    return web.Response()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (refused, "status 429"),
        (not_json, "could not be read"),
        (wrong_shape, "could not be read"),
        (endless, "too large"),
        (silent, "did not answer in time"),
    ],
)
async def test_failure_of_the_search_engine_is_reported(handler: Any, reason: str) -> None:
    async with serve_web(handler) as address:
        result = await search(
            search_backend="searxng", searxng_url=address, search_timeout=0.5 if handler is silent else 30
        )
    assert result.is_error
    assert reason in text_of(result)


@pytest.mark.parametrize(
    ("values", "method", "asked", "header", "answer"),
    [
        (
            {"search_backend": "tavily", "tavily_api_key": "tvly-1"},
            "POST",
            {"query": "cats", "max_results": 3},
            ("Authorization", "Bearer tvly-1"),
            {"results": [{"title": "Cats", "url": "https://cats.example/", "content": "Meow"}]},
        ),
        (
            {"search_backend": "brave", "brave_api_key": "brv-1"},
            "GET",
            {"q": "cats", "count": "3"},
            ("X-Subscription-Token", "brv-1"),
            {"web": {"results": [{"title": "Cats", "url": "https://cats.example/", "description": "Meow"}]}},
        ),
    ],
)
async def test_each_engine_is_asked_in_its_own_way(
    values: dict[str, str], method: str, asked: dict[str, Any], header: tuple[str, str], answer: Any
) -> None:
    seen: list[tuple[str, Any, str | None]] = []

    async def engine(request: web.Request) -> web.Response:
        body = await request.json() if request.method == "POST" else dict(request.query)
        seen.append((request.method, body, request.headers.get(header[0])))
        return web.json_response(answer)

    backend = create_backend(settings(**values))
    assert isinstance(backend, JsonBackend)
    async with serve_web(engine) as address:
        local_backend = JsonBackend(replace(backend.api, url=address), timeout=30)
        assert await local_backend.search_web("cats", 3) == [
            SearchResult(title="Cats", url="https://cats.example/", snippet="Meow")
        ]
    assert seen == [(method, asked, header[1])]


async def test_unreachable_duckduckgo_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDGS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(SearchFailed, match="cannot be reached from here; the network may be unavailable"):
        await create_backend(settings(search_timeout=30)).search_web("cats", 3)
