"""Bodies of peers that are small until they are decompressed."""

import resource
from collections.abc import Callable

import jwt
import pytest
from aiohttp import web
from ddgs.engines.duckduckgo import Duckduckgo

from gateway.api.security.jwt_verifier import JwksCache, JwksUnavailable
from gateway.domain.errors import GatewayError
from gateway.domain.messages import Message
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.llm.providers.groq import create_groq_model
from gateway.llm.providers.openai import create_openai_model
from gateway.mcp_client.server_config import ServerConfig
from gateway.ports.model import ModelCall
from tests.gateway.bombs import MAX_PEAK_MIB, limit_memory, make_bomb, serve_bomb
from tests.gateway.llm.test_retries import Sink
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.tools_server.conftest import serve_web
from tools_server.published_keys import KeysUnavailable, PublishedKeys
from tools_server.web_search import DuckDuckGo, JsonBackend, SearchApi, SearchFailed

ENCODINGS = ["gzip", "deflate", "gzip, gzip"]
CALL = ModelCall(model="m", messages=(Message("user", "Hello"),))
STRUCTURED_CALL = ModelCall(model="m", messages=(Message("user", "Hello"),), response_format={"type": "json_object"})


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("make", [create_groq_model, create_openai_model])
@pytest.mark.parametrize(
    ("call", "status", "content_type"),
    [
        (CALL, 200, "text/event-stream"),
        (STRUCTURED_CALL, 200, "application/json"),
        (CALL, 400, "application/json"),
        (CALL, 500, "text/html"),
        (None, 200, "application/json"),
        (None, 401, "application/json"),
    ],
    ids=["stream", "structured", "refusal", "error", "models", "refused-models"],
)
async def test_compressed_answer_of_a_model_server_is_bounded(
    make: Callable[[ModelServerOptions], OpenAICompatibleModel],
    call: ModelCall | None,
    status: int,
    content_type: str,
    encoding: str,
) -> None:
    make_bomb(encoding)
    async with serve_bomb(encoding, status=status, content_type=content_type) as url:
        model = make(ModelServerOptions(api_key="key-of-ours", base_url=f"{url}/v1"))
        with limit_memory(), pytest.raises(GatewayError):
            await (model.list_models() if call is None else model.complete(call, Sink()))
        await model.close()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("transport", "content_type", "prefix"),
    [
        ("http", "application/json", b""),
        ("http", "text/event-stream", b"data: "),
        ("sse", "text/event-stream", b"event: message\ndata: "),
    ],
    ids=["json", "stream", "legacy-sse"],
)
async def test_compressed_answer_of_an_mcp_server_is_bounded(
    transport: str, content_type: str, prefix: bytes, encoding: str
) -> None:
    make_bomb(encoding, prefix)
    async with serve_bomb(encoding, content_type=content_type, prefix=prefix) as url:
        with limit_memory():
            server = ServerConfig(name="t", url=f"{url}/mcp", type=transport)  # type: ignore[arg-type]
            async with connect_toolbox(server) as toolbox:
                assert toolbox.list_server_statuses()[0].state == "down"


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_compressed_jwks_is_bounded(encoding: str) -> None:
    make_bomb(encoding)
    async with serve_bomb(encoding) as url:
        with limit_memory(), pytest.raises(JwksUnavailable):
            await JwksCache(url, timeout_seconds=30).get_key("a")


@pytest.mark.faults
async def test_compressed_jwks_is_bounded_at_the_tool_server() -> None:
    make_bomb("gzip")
    async with serve_bomb("gzip") as url:
        with limit_memory(), pytest.raises(KeysUnavailable):
            await PublishedKeys(url).find_key(jwt.encode({}, "s" * 32, headers={"kid": "a"}))


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_compressed_search_results_are_bounded(encoding: str) -> None:
    make_bomb(encoding)
    async with serve_bomb(encoding) as url:
        api = SearchApi(url=url, method="GET", query_parameter="q", results_path=("results",), snippet_key="content")
        with limit_memory(), pytest.raises(SearchFailed):
            await JsonBackend(api, timeout=30).search_web("cats", 5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_results_of_duckduckgo_are_bounded(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bomb(encoding, b"<html>")
    async with serve_bomb(encoding, content_type="text/html", prefix=b"<html>") as url:
        monkeypatch.setattr(Duckduckgo, "search_url", url)
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with limit_memory(), pytest.raises(SearchFailed):
            await DuckDuckGo(30).search_web("cats", 5)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage  # the library's own memory
        assert growth < MAX_PEAK_MIB * 1024


async def test_results_of_duckduckgo_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<div class='body'><h2>Cats</h2><a href='http://example.org/'>About café cats</a></div>"

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=f"<html>{page}</html>", content_type="text/html")

    async with serve_web(answer) as url:
        monkeypatch.setattr(Duckduckgo, "search_url", url)
        [result] = await DuckDuckGo(30).search_web("cats", 5)
    assert (result.title, result.url, result.snippet) == ("Cats", "http://example.org/", "About café cats")


async def test_deeply_nested_answers_of_peers_are_errors() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="[" * 200_000 + "]" * 200_000, content_type="application/json")

    async with serve_web(answer) as url:
        with pytest.raises(JwksUnavailable):
            await JwksCache(url, timeout_seconds=30).get_key("a")
        api = SearchApi(url=url, method="GET", query_parameter="q", results_path=("results",), snippet_key="content")
        with pytest.raises(SearchFailed):
            await JsonBackend(api, timeout=30).search_web("cats", 5)
        model = create_openai_model(ModelServerOptions(api_key="key-of-ours", base_url=f"{url}/v1"))
        with pytest.raises(GatewayError):
            await model.list_models()
        with pytest.raises(GatewayError):
            await model.complete(STRUCTURED_CALL, Sink())
        await model.close()
        async with connect_toolbox(ServerConfig(name="t", url=f"{url}/mcp")) as toolbox:
            assert toolbox.list_server_statuses()[0].state == "down"
