"""`web_search`, over whichever search engine is configured."""

import asyncio
from typing import Annotated, Any, Protocol, TypeVar

import aiohttp
import anyio
import anyio.to_thread
import structlog
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, TypeAdapter

from tools_server.config import ConfigError, Settings

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

MOST_RESULTS = 20
_MOST_SNIPPET = 500


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
    """DuckDuckGo through the library `ddgs`, which blocks: a thread each, few at once, given up after the timeout."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._threads = anyio.CapacityLimiter(4)

    async def search(self, query: str, most: int) -> list[Hit]:
        try:
            async with asyncio.timeout(self._timeout + 1):
                found = await anyio.to_thread.run_sync(
                    self._search, query, most, abandon_on_cancel=True, limiter=self._threads
                )
        except TimeoutError:
            raise SearchFailed("it did not answer in time") from None
        return [Hit(title=hit["title"], url=hit["href"], snippet=hit.get("body", "")) for hit in found]

    def _search(self, query: str, most: int) -> list[dict[str, str]]:
        from ddgs import DDGS  # pyright: ignore[reportUnknownVariableType]
        from ddgs.exceptions import DDGSException

        try:
            engine: Any = DDGS(timeout=int(self._timeout))
            return engine.text(query, max_results=most)
        except DDGSException as error:
            if "no results" in str(error).lower():
                return []
            raise SearchFailed("it cannot be reached from here") from error


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

    async def search(self, query: str, most: int) -> list[Hit]:
        asked: dict[str, Any] = {self._query: query, **self._more} | ({self._most: most} if self._most else {})
        posted = self._method == "POST"
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, headers=self._headers) as session,
                session.request(
                    self._method,
                    self._url,
                    allow_redirects=False,
                    json=asked if posted else None,
                    params=None if posted else asked,
                ) as response,
            ):
                if response.status != 200:
                    raise SearchFailed(f"it answered with status {response.status}")
                return self._hits(await response.json(content_type=None))[:most]
        except TimeoutError:
            raise SearchFailed("it did not answer in time") from None
        except aiohttp.ClientError:
            raise SearchFailed("it cannot be reached from here") from None
        except ValueError:
            raise SearchFailed("its answer could not be read") from None

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


def make_backend(settings: Settings) -> SearchBackend:
    """The search engine that the settings name.

    Raises:
        ConfigError: its key or address is missing.
    """
    timeout = settings.search_timeout
    match settings.search_backend:
        case "duckduckgo":
            return DuckDuckGo(timeout)
        case "tavily":
            key = _required(settings.tavily_api_key, "TAVILY_API_KEY").get_secret_value()
            return JsonBackend(
                "https://api.tavily.com/search", method="POST", headers={"Authorization": f"Bearer {key}"},
                path=("results",), fields=("title", "url", "content"), query="query", most="max_results",
                timeout=timeout,
            )  # fmt: skip
        case "brave":
            key = _required(settings.brave_api_key, "BRAVE_API_KEY").get_secret_value()
            return JsonBackend(
                "https://api.search.brave.com/res/v1/web/search", method="GET", headers={"X-Subscription-Token": key},
                path=("web", "results"), fields=("title", "url", "description"), query="q", most="count",
                timeout=timeout,
            )  # fmt: skip
        case "searxng":
            url = _required(settings.searxng_url, "SEARXNG_URL").rstrip("/")
            return JsonBackend(
                f"{url.removesuffix('/search')}/search", method="GET", headers={}, path=("results",),
                fields=("title", "url", "content"), query="q", most=None, more={"format": "json"}, timeout=timeout,
            )  # fmt: skip


def _required(value: T | None, name: str) -> T:
    if value is None:
        raise ConfigError(f"{name}: must be set for this SEARCH_BACKEND")
    return value


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
        hits = [hit.model_copy(update={"snippet": hit.snippet[:_MOST_SNIPPET]}) for hit in hits[:max_results]]
        text = "\n\n".join(f"{n}. {hit.title}\n{hit.url}\n{hit.snippet}" for n, hit in enumerate(hits, 1))
        return CallToolResult(
            content=[TextContent(type="text", text=text or f"Nothing was found for {query!r}.")],
            structured_content=Hits(query=query, results=hits).model_dump(mode="json"),
        )
