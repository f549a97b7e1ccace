"""The tool `web_search`, with the search engine that the settings name."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, cast

import aiohttp
import structlog
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, TypeAdapter

from tools_server.bounded_search import limit_answers
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
    """The search failed; `str()` is the reason, for the model."""


class SearchBackend(Protocol):
    """A search engine."""

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        """Return at most `limit` results, best first.

        Raises:
            SearchFailed: the engine cannot be reached, rejects the search, or sends an unreadable response.
        """
        ...


class _DdgsClient(Protocol):
    """The part of `ddgs`, which has no types, that this module uses."""

    def text(self, query: str, *, max_results: int, backend: str) -> list[dict[str, str]]: ...


class DuckDuckGo(SearchBackend):
    """DuckDuckGo through the library `ddgs`.

    The library blocks, so it runs in a few threads. A search that timed out here ends by itself, because each of its
    requests has the same timeout.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._threads = BoundedThreadPool(4)

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        try:
            async with asyncio.timeout(self._timeout + 1):
                rows = await self._threads.run_blocking(self._search_blocking, query, limit)
        except TimeoutError:
            raise SearchFailed("DuckDuckGo did not answer in time") from None
        return [
            SearchResult(title=row.get("title", ""), url=row["href"], snippet=row.get("body", ""))
            for row in rows
            if row.get("href")
        ]

    def _search_blocking(self, query: str, limit: int) -> list[dict[str, str]]:
        from ddgs import DDGS  # pyright: ignore[reportUnknownVariableType]
        from ddgs.exceptions import DDGSException

        limit_answers()
        try:
            client: _DdgsClient = DDGS(timeout=max(1, int(self._timeout)))
            return client.text(query, max_results=limit, backend="duckduckgo")
        except DDGSException as error:
            if "no results" in str(error).lower():
                raise SearchFailed("DuckDuckGo found nothing for these words, or refuses to answer") from error
            raise SearchFailed("DuckDuckGo cannot be reached from here; the network may be unavailable") from error


@dataclass(frozen=True)
class SearchApi:
    """The JSON API of a search engine.

    It defines how a query is sent, and where the response has its results. `results_path` are the keys from the
    response to the list of results. `title_key`, `url_key` and `snippet_key` are keys of one result. A POST sends the
    parameters as a JSON object, a GET in the URL.
    """

    url: str
    method: Literal["GET", "POST"]
    query_parameter: str
    results_path: tuple[str, ...]
    snippet_key: str
    title_key: str = "title"
    url_key: str = "url"
    limit_parameter: str | None = None
    extra_parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def build_parameters(self, query: str, limit: int) -> dict[str, str | int]:
        """Build the parameters of a search.

        Without `limit_parameter` the engine chooses the number of results.
        """
        parameters: dict[str, str | int] = {self.query_parameter: query, **self.extra_parameters}
        if self.limit_parameter is not None:
            parameters[self.limit_parameter] = limit
        return parameters

    def parse_results(self, response: object) -> list[SearchResult]:
        """Parse the results of a decoded response.

        Results without a URL are omitted.

        Raises:
            ValueError: the response has another structure.
        """
        for key in self.results_path:
            response = cast(dict[str, object], response).get(key) if isinstance(response, dict) else None
        return [
            SearchResult(
                title=str(row.get(self.title_key) or ""),
                url=str(row[self.url_key]),
                snippet=str(row.get(self.snippet_key) or ""),
            )
            for row in _RESULT_ROWS.validate_python(response or [])
            if row.get(self.url_key)
        ]


_RESULT_ROWS = TypeAdapter(list[dict[str, object]])


class JsonBackend(SearchBackend):
    """A search engine with a JSON API.

    `timeout` limits a search, in seconds.
    """

    def __init__(self, api: SearchApi, *, timeout: float) -> None:
        self.api = api
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=min(timeout, 5))
        self._resolver = ThreadedResolver(BoundedThreadPool(4))

    async def search_web(self, query: str, limit: int) -> list[SearchResult]:
        parameters = self.api.build_parameters(query, limit)
        is_post = self.api.method == "POST"
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=self._timeout,
                    headers=self.api.headers,
                    connector=aiohttp.TCPConnector(resolver=self._resolver, force_close=True),
                ) as session,
                session.request(
                    self.api.method,
                    self.api.url,
                    allow_redirects=False,
                    json=parameters if is_post else None,
                    params=None if is_post else parameters,
                ) as response,
            ):
                if response.status != 200:
                    raise SearchFailed(f"the search engine answered with status {response.status}")
                return self.api.parse_results(json.loads(await _read_body(response)))[:limit]
        except TimeoutError:
            raise SearchFailed("the search engine did not answer in time") from None
        except aiohttp.ClientConnectorError:
            raise SearchFailed(
                "the search engine cannot be reached from here; the network may be unavailable"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError, RecursionError):
            raise SearchFailed("the search engine's answer could not be read") from None


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read a response's body.

    Raises:
        SearchFailed: it is larger than `_MAX_BODY_BYTES`.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise SearchFailed("the search engine's answer is too large")
    return bytes(body)


def create_backend(settings: Settings) -> SearchBackend:
    """Create the search engine that the settings name.

    `Settings` has checked that its key or address is set.
    """
    match settings.search_backend:
        case "duckduckgo":
            return DuckDuckGo(settings.search_timeout)
        case "tavily":
            key = settings.tavily_api_key.get_secret_value() if settings.tavily_api_key else ""
            api = SearchApi(
                url="https://api.tavily.com/search",
                method="POST",
                query_parameter="query",
                limit_parameter="max_results",
                results_path=("results",),
                snippet_key="content",
                headers={"Authorization": f"Bearer {key}"},
            )
        case "brave":
            key = settings.brave_api_key.get_secret_value() if settings.brave_api_key else ""
            api = SearchApi(
                url="https://api.search.brave.com/res/v1/web/search",
                method="GET",
                query_parameter="q",
                limit_parameter="count",
                results_path=("web", "results"),
                snippet_key="description",
                headers={"X-Subscription-Token": key},
            )
        case "searxng":
            base_url = (settings.searxng_url or "").rstrip("/").removesuffix("/search")
            api = SearchApi(
                url=f"{base_url}/search",
                method="GET",
                query_parameter="q",
                results_path=("results",),
                snippet_key="content",
                extra_parameters={"format": "json"},
            )
    return JsonBackend(api, timeout=settings.search_timeout)


def register_web_search(mcp: MCPServer[object], backend: SearchBackend) -> None:
    """Add the tool to a server."""

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
            results = await backend.search_web(query, max_results)
        except SearchFailed as error:
            log.warning("search_failed", reason=str(error))
            raise ToolError(f"The web search does not work now: {error}. Say so; do not invent results.") from None
        results = [_truncate_result(result) for result in results[:max_results]]
        text = "\n\n".join(
            f"{number}. {result.title}\n{result.url}\n{result.snippet}" for number, result in enumerate(results, 1)
        )
        return CallToolResult(
            content=[TextContent(type="text", text=text or f"Nothing was found for {query!r}.")],
            structured_content=SearchResults(query=query, results=results).model_dump(mode="json"),
        )


def _truncate_result(result: SearchResult) -> SearchResult:
    return SearchResult(
        title=result.title[:_MAX_TITLE_LENGTH], url=result.url, snippet=result.snippet[:_MAX_SNIPPET_LENGTH]
    )
