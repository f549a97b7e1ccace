"""A gateway that a proxy publishes at another origin, below a prefix."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.simulator import Simulator
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, ServeSharedGateway, find_free_port, serve_asgi, serve_gateway

ORIGIN = "https://gw.example.test:8443"


@pytest.fixture(scope="module")
async def published(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await serve_shared_gateway(gateway_public_url=f"{ORIGIN}/gw")


@pytest.mark.parametrize("prefix", ["", "/gw"])
async def test_paths_work_whether_the_proxy_removes_the_prefix_or_not(published: Gateway, prefix: str) -> None:
    for path, status in {"/health": 200, "/api/v1/models": 200, "/v1/models": 200, "/nothing": 404}.items():
        assert (await published.get(f"{prefix}{path}")).status == status, path
    reply = await published.post(f"{prefix}/api/v1/chat", {"messages": [{"role": "user", "content": "hi"}]})
    assert reply.status == 200
    assert (await published.get(f"{prefix}/api/v1/turns/01a21b3e-6e53-7677-ac3e-c4f9c7f88044")).status == 404


@pytest.mark.parametrize("prefix", ["", "/gw"])
@pytest.mark.parametrize("page", ["/docs", "/redoc", "/docs/oauth2-redirect"])
async def test_documentation_loads_below_the_prefix(published: Gateway, prefix: str, page: str) -> None:
    async with published.session.get(f"{published.base_url}{prefix}{page}") as response:
        assert response.status == 200
        assert "script-src" in response.headers["Content-Security-Policy"]
        html = await response.text()
    folder = page.rpartition("/")[0]
    for link in re.findall(r'(?:src|href|spec-url)="([^"]+)"', html):
        if link == "data:,":
            continue
        assert not link.startswith("/")  # it would leave the prefix
        async with published.session.get(f"{published.base_url}{prefix}{folder}/{link}") as response:
            assert response.status == 200, link


async def test_openapi_document_names_the_prefix(published: Gateway) -> None:
    assert (await published.get("/gw/openapi.json")).body["servers"] == [{"url": "/gw"}]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (ORIGIN, 200),
        ("https://gw.example.test", 403),
        ("http://gw.example.test:8443", 403),
        ("https://gw.example.test.evil.test:8443", 403),
        ("https://evil.test", 403),
        ("null", 403),
    ],
)
async def test_only_the_public_origin_is_ones_own(published: Gateway, origin: str, status: int) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for path in ("/api/v1/chat", "/gw/api/v1/chat"):
        assert (await published.post(path, body, headers={"Origin": origin})).status == status
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    headers = {"Origin": origin, "Accept": "application/json, text/event-stream"}
    async with published.session.post(f"{published.base_url}/gw/mcp", json=initialize, headers=headers) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("gw.example.test", 200),
        ("GW.example.test:8443", 200),
        ("gw.example.test.", 200),
        ("[::1]:80", 200),
        ("evil.test", 421),
    ],
)
async def test_public_host_is_trusted(published: Gateway, host: str, status: int) -> None:
    assert (await published.get("/api/v1/models", headers={"Host": host})).status == status


async def test_prefix_that_begins_routes_is_removed_only_where_a_proxy_added_it(
    serve_shared_gateway: ServeSharedGateway,
) -> None:
    gateway = await serve_shared_gateway(gateway_root_path="/api")
    for path in (
        "/api/v1/models",
        "/api/api/v1/models",
        "/v1/models",
        "/api/v1/models/openai/gpt-oss-120b",
        "/api/health",
    ):
        assert (await gateway.get(path)).status == 200, path
    assert (await gateway.get("/apiv1/models")).status == 404


@asynccontextmanager
async def serve_with_sign_in(
    database_url: str, simulator: Simulator, directory: Path, *, public_url: str, port: int
) -> AsyncGenerator[Gateway]:
    vault_port = find_free_port()
    vault = OAuthMcpServer(vault_port)
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"vault": {"url": vault.url, "share": "user"}}}))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve_asgi(vault.create_app(), vault_port))
        settings: dict[str, Any] = {
            "gateway_public_url": public_url,
            "mcp_config": file,
            "gateway_data_dir": directory,
        }
        yield await stack.enter_async_context(serve_gateway(database_url, simulator, None, port=port, **settings))


async def sign_in(gateway: Gateway, browser: aiohttp.ClientSession, origin: str) -> str:
    """Sign in as a browser does; return the last page."""
    url = (await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
    assert url.startswith(f"{origin}/gw/api/v1/mcp/oauth/start?")
    async with browser.get(url) as page:
        assert page.status == 200
        assert '<form method="post">' in await page.text()
    async with browser.post(url, headers={"Origin": origin}, allow_redirects=False) as start:
        assert start.status == 303, await start.text()
        assert start.cookies["agent_gateway_login"]["path"] == "/gw/api/v1/mcp/oauth"
        assert bool(start.cookies["agent_gateway_login"]["secure"]) is origin.startswith("https://")
        authorize = start.headers["Location"]
    async with browser.get(authorize, allow_redirects=False) as consent:
        callback = consent.headers["Location"]
    assert callback.startswith(f"{origin}/gw/api/v1/mcp/oauth/callback?")
    async with browser.get(callback) as end:
        assert end.cookies["agent_gateway_login"]["path"] == "/gw/api/v1/mcp/oauth"
        return await end.text()


async def test_sign_in_pages_work_below_the_prefix(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    port = find_free_port()
    origin = f"http://127.0.0.1:{port}"
    async with (
        serve_with_sign_in(database_url, simulator, tmp_path, public_url=f"{origin}/gw", port=port) as gateway,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
    ):
        assert "Signed in" in await sign_in(gateway, browser, origin)
