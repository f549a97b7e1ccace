"""`web_search`, over whichever search engine is configured."""

import asyncio
import json
from typing import Annotated, Any, Protocol

import aiohttp
import structlog
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, TypeAdapter

from tools_server.config import Settings
from tools_server.thread_pool import BoundedThreadPool, ThreadedResolver

log = structlog.stdlib.get_logger(__name__)

MAX_RESULTS = 20
_MAX_TITLE_LENGTH, _MAX_SNIPPET_LENGTH = 300, 500
_MAX_BODY_BYTES = 2 * 1024 * 1024


class SearchResult(BaseModel):
    title: str
    url: str
    snippet: str = ""


class SearchResults(BaseModel):
    query: str
    results: list[SearchResult]


class SearchFailed(Exception):
    """No results, for a reason that the model may be told."""


class SearchBackend(Protocol):
    """A search engine."""

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        """At most `most` hits, best first.

        Raises:
            SearchFailed: the engine cannot be reached, refuses, or answers with something else.
        """
        ...


class DuckDuckGo:
    """DuckDuckGo through the library `ddgs`, which blocks: in few threads, given up after the timeout.

    A search that is given up still ends by itself, as each of its requests has the same timeout.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._threads = BoundedThreadPool(4)

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        try:
            async with asyncio.timeout(self._timeout + 1):
                found = await self._threads.run_blocking(self._search_blocking, query, limit)
        except TimeoutError:
            raise SearchFailed("DuckDuckGo did not answer in time") from None
        return [
            SearchResult(title=hit.get("title", ""), url=hit["href"], snippet=hit.get("body", ""))
            for hit in found
            if hit.get("href")
        ]

    def _search_blocking(self, query: str, limit: int) -> list[dict[str, str]]:
        from ddgs import DDGS  # pyright: ignore[reportUnknownVariableType]
        from ddgs.exceptions import DDGSException

        try:
            engine: Any = DDGS(timeout=max(1, int(self._timeout)))
            return engine.text(query, max_results=limit, backend="duckduckgo")
        except DDGSException as error:
            if "no results" in str(error).lower():
                raise SearchFailed("DuckDuckGo found nothing for these words, or refuses to answer") from error
            raise SearchFailed("DuckDuckGo cannot be reached from here; the network may be away") from error


class JsonBackend:
    """A search engine with a JSON API: where to ask, and where in the answer the hits are."""

    def __init__(
        self, url: str, *, method: str, headers: dict[str, str], path: tuple[str, ...], fields: tuple[str, str, str],
        query: str, most: str | None, timeout: float, more: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._method = method
        self._headers = headers
        self._path = path
        self._fields = fields
        self._query = query
        self._most = most
        self._more = more or {}
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=min(timeout, 5))
        self._resolver = ThreadedResolver(BoundedThreadPool(4))

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        asked: dict[str, Any] = {self._query: query, **self._more} | ({self._most: limit} if self._most else {})
        posted = self._method == "POST"
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=self._timeout,
                    headers=self._headers,
                    connector=aiohttp.TCPConnector(resolver=self._resolver, force_close=True),
                ) as session,
                session.request(
                    self._method,
                    self._url,
                    allow_redirects=False,
                    json=asked if posted else None,
                    params=None if posted else asked,
                ) as response,
            ):
                if response.status != 200:
                    raise SearchFailed(f"the search engine answered with status {response.status}")
                return self._parse_results(json.loads(await _bounded_body(response)))[:limit]
        except TimeoutError:
            raise SearchFailed("the search engine did not answer in time") from None
        except aiohttp.ClientConnectorError:
            raise SearchFailed("the search engine cannot be reached from here; the network may be away") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise SearchFailed("the search engine's answer could not be read") from None

    def _parse_results(self, answer: Any) -> list[SearchResult]:
        for step in self._path:
            answer = answer.get(step, {}) if isinstance(answer, dict) else {}  # pyright: ignore
        title, url, snippet = self._fields
        rows = _Rows.validate_python(answer or [])
        return [
            SearchResult(title=str(row.get(title) or ""), url=str(row[url]), snippet=str(row.get(snippet) or ""))
            for row in rows
            if row.get(url)
        ]


_Rows = TypeAdapter(list[dict[str, Any]])


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise SearchFailed("the search engine's answer is too large")
    return bytes(body)


def make_backend(settings: Settings) -> SearchBackend:
    """The search engine that the settings name; they made sure that its key or address is there."""
    timeout = settings.search_timeout
    match settings.search_backend:
        case "duckduckgo":
            return DuckDuckGo(timeout)
        case "tavily":
            key = settings.tavily_api_key.get_secret_value() if settings.tavily_api_key else ""
            return JsonBackend(
                "https://api.tavily.com/search", method="POST", headers={"Authorization": f"Bearer {key}"},
                path=("results",), fields=("title", "url", "content"), query="query", most="max_results",
                timeout=timeout,
            )  # fmt: skip
        case "brave":
            key = settings.brave_api_key.get_secret_value() if settings.brave_api_key else ""
            return JsonBackend(
                "https://api.search.brave.com/res/v1/web/search", method="GET", headers={"X-Subscription-Token": key},
                path=("web", "results"), fields=("title", "url", "description"), query="q", most="count",
                timeout=timeout,
            )  # fmt: skip
        case "searxng":
            url = (settings.searxng_url or "").rstrip("/").removesuffix("/search")
            return JsonBackend(
                f"{url}/search", method="GET", headers={}, path=("results",), fields=("title", "url", "content"),
                query="q", most=None, more={"format": "json"}, timeout=timeout,
            )  # fmt: skip


def register_web_search(mcp: MCPServer[Any], backend: SearchBackend) -> None:
    @mcp.tool(
        title="Web search",
        annotations=ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True
        ),
    )
    async def web_search(
        query: Annotated[str, Field(description="What to look for, in a few words.", min_length=1, max_length=400)],
        max_results: Annotated[int, Field(description="How many results at most.", ge=1, le=MAX_RESULTS)] = 5,
    ) -> Annotated[CallToolResult, SearchResults]:
        """Search the web. Use this for what may have changed or is not known to you: news, prices, people, releases.

        Returns title, address and a snippet of each hit. To read a whole page, pass its address to fetch_page.
        """
        try:
            hits = await backend.search_web(query, max_results)
        except SearchFailed as error:
            log.warning("search_failed", reason=str(error))
            raise ToolError(f"The web search does not work now: {error}. Say so; do not invent results.") from None
        hits = [_truncate_result(hit) for hit in hits[:max_results]]
        text = "\n\n".join(f"{n}. {hit.title}\n{hit.url}\n{hit.snippet}" for n, hit in enumerate(hits, 1))
        return CallToolResult(
            content=[TextContent(type="text", text=text or f"Nothing was found for {query!r}.")],
            structured_content=SearchResults(query=query, results=hits).model_dump(mode="json"),
        )


def _truncate_result(hit: SearchResult) -> SearchResult:
    return SearchResult(title=hit.title[:_MAX_TITLE_LENGTH], url=hit.url, snippet=hit.snippet[:_MAX_SNIPPET_LENGTH])
