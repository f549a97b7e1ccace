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
from tools_server.thread_pool import Resolver, Threads

log = structlog.stdlib.get_logger(__name__)

MOST_RESULTS = 20
_MOST_TITLE, _MOST_SNIPPET = 300, 500
_MOST_BYTES = 2 * 1024 * 1024


class Hit(BaseModel):
    title: str
    url: str
    snippet: str = ""


class Hits(BaseModel):
    query: str
    results: list[Hit]


class SearchFailed(Exception):
    """No results, for a reason that the model may be told."""


class SearchBackend(Protocol):
    """A search engine."""

    async def search(self, query: str, most: int) -> list[Hit]:
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
        self._threads = Threads(4)

    async def search(self, query: str, most: int) -> list[Hit]:
        try:
            async with asyncio.timeout(self._timeout + 1):
                found = await self._threads.run(self._search, query, most)
        except TimeoutError:
            raise SearchFailed("DuckDuckGo did not answer in time") from None
        return [
            Hit(title=hit.get("title", ""), url=hit["href"], snippet=hit.get("body", ""))
            for hit in found
            if hit.get("href")
        ]

    def _search(self, query: str, most: int) -> list[dict[str, str]]:
        from ddgs import DDGS  # pyright: ignore[reportUnknownVariableType]
        from ddgs.exceptions import DDGSException

        try:
            engine: Any = DDGS(timeout=max(1, int(self._timeout)))
            return engine.text(query, max_results=most, backend="duckduckgo")
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
        self._resolver = Resolver(Threads(4))

    async def search(self, query: str, most: int) -> list[Hit]:
        asked: dict[str, Any] = {self._query: query, **self._more} | ({self._most: most} if self._most else {})
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
                return self._hits(json.loads(await _bounded_body(response)))[:most]
        except TimeoutError:
            raise SearchFailed("the search engine did not answer in time") from None
        except aiohttp.ClientConnectorError:
            raise SearchFailed("the search engine cannot be reached from here; the network may be away") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise SearchFailed("the search engine's answer could not be read") from None

    def _hits(self, answer: Any) -> list[Hit]:
        for step in self._path:
            answer = answer.get(step, {}) if isinstance(answer, dict) else {}  # pyright: ignore
        title, url, snippet = self._fields
        rows = _Rows.validate_python(answer or [])
        return [
            Hit(title=str(row.get(title) or ""), url=str(row[url]), snippet=str(row.get(snippet) or ""))
            for row in rows
            if row.get(url)
        ]


_Rows = TypeAdapter(list[dict[str, Any]])


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        body += piece
        if len(body) > _MOST_BYTES:
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


def register(mcp: MCPServer[Any], backend: SearchBackend) -> None:
    @mcp.tool(
        title="Web search",
        annotations=ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True
        ),
    )
    async def web_search(
        query: Annotated[str, Field(description="What to look for, in a few words.", min_length=1, max_length=400)],
        max_results: Annotated[int, Field(description="How many results at most.", ge=1, le=MOST_RESULTS)] = 5,
    ) -> Annotated[CallToolResult, Hits]:
        """Search the web. Use this for what may have changed or is not known to you: news, prices, people, releases.

        Returns title, address and a snippet of each hit. To read a whole page, pass its address to fetch_page.
        """
        try:
            hits = await backend.search(query, max_results)
        except SearchFailed as error:
            log.warning("search_failed", reason=str(error))
            raise ToolError(f"The web search does not work now: {error}. Say so; do not invent results.") from None
        hits = [_shortened(hit) for hit in hits[:max_results]]
        text = "\n\n".join(f"{n}. {hit.title}\n{hit.url}\n{hit.snippet}" for n, hit in enumerate(hits, 1))
        return CallToolResult(
            content=[TextContent(type="text", text=text or f"Nothing was found for {query!r}.")],
            structured_content=Hits(query=query, results=hits).model_dump(mode="json"),
        )


def _shortened(hit: Hit) -> Hit:
    return Hit(title=hit.title[:_MOST_TITLE], url=hit.url, snippet=hit.snippet[:_MOST_SNIPPET])
