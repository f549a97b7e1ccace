"""OAuth requests of MCP servers through the proxy of the environment."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import ServeSharedGateway
from tests.gateway.api.test_odd_authorization_servers import call_tool
from tests.gateway.api.test_sign_in import Browser
from tests.gateway.api.test_sign_in_addresses import serve_hostile
from tests.gateway.mcp_client.odd_oauth_server import OddOAuthServer
from tests.stack import find_free_port, serve_asgi
from tests.tools_server.conftest import serve_web

HOST = "vault.test"
START_PATH = "/api/v1/mcp/oauth/start"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class ForwardProxy:
    """A proxy that alone knows where the host `vault.test` is.

    `requests` are the URLs that it was asked for.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.requests: list[str] = []

    async def forward(self, request: web.Request) -> web.Response:
        self.requests.append(str(request.url))
        url = request.url.with_host("127.0.0.1").with_port(self._port)
        headers = {name: value for name, value in request.headers.items() if name != "Accept-Encoding"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, url, headers=headers, data=await request.read(), allow_redirects=False
            ) as response,
        ):
            names = ("Content-Type", "WWW-Authenticate", "Location")
            headers = {name: response.headers[name] for name in names if name in response.headers}
            return web.Response(status=response.status, headers=headers, body=await response.read())


def set_proxies(monkeypatch: pytest.MonkeyPatch, **proxies: str) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, address in proxies.items():
        monkeypatch.setenv(name, address)


@pytest.fixture
async def hidden(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[OddOAuthServer, ForwardProxy]]:
    """An MCP server that only the proxy of the environment reaches."""
    port = find_free_port()
    server, proxy = OddOAuthServer(port), ForwardProxy(port)
    server.origin = f"http://{HOST}:{port}"
    async with serve_asgi(server.create_app(), port), serve_web(proxy.forward) as address:
        set_proxies(monkeypatch, HTTP_PROXY=address, NO_PROXY="127.0.0.1,localhost")
        yield server, proxy


async def test_sign_in_and_refresh_go_through_the_proxy(
    hidden: tuple[OddOAuthServer, ForwardProxy], serve_shared_gateway: ServeSharedGateway, tmp_path: Path
) -> None:
    server, proxy = hidden
    file, port = tmp_path / "mcp.json", find_free_port()
    file.write_text(json.dumps({"mcpServers": {"base": {"url": f"{server.origin}/base/mcp"}}}))
    settings = {"mcp_config": file, "gateway_data_dir": tmp_path, "gateway_public_url": f"http://127.0.0.1:{port}"}
    gateway = await serve_shared_gateway(port=port, **settings)
    url = (await gateway.post("/api/v1/mcp/servers/base/sign-in", {})).body["url"]
    browser = Browser(gateway.session)
    status, page = await browser.open("POST", url, follow=False)
    assert (status, urlsplit(page).hostname) == (303, HOST), page
    status, page = await browser.open("GET", page.replace(HOST, "127.0.0.1"))
    assert (status, "Signed in" in page) == (200, True), page
    assert "the vault of base" in await call_tool(gateway, "base")
    server.revoke_access("base")
    assert "the vault of base" in await call_tool(gateway, "base")
    paths = [urlsplit(request).path for request in proxy.requests]
    assert paths.count("/base/as/token") == 2
    assert {"/base/mcp", "/base/as/register", "/.well-known/oauth-protected-resource/base/mcp"} <= set(paths)


async def test_server_added_at_run_time_must_resolve_beside_a_proxy(
    hidden: tuple[OddOAuthServer, ForwardProxy], serve_shared_gateway: ServeSharedGateway, tmp_path: Path
) -> None:
    server, _ = hidden
    gateway = await serve_shared_gateway(gateway_data_dir=tmp_path, gateway_public_url="http://gw.test")
    body = {"name": "hostile", "url": f"{server.origin}/base/mcp"}
    assert (await gateway.post("/api/v1/mcp/servers", body)).status == 201
    ticket = urlsplit((await gateway.post("/api/v1/mcp/servers/hostile/sign-in", {})).body["url"]).query
    status, page = await Browser(gateway.session).open("POST", f"{gateway.base_url}{START_PATH}?{ticket}")
    assert (status, "cannot resolve" in page) == (502, True), page


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
async def test_proxy_is_not_asked_for_an_internal_address(
    serve_shared_gateway: ServeSharedGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    proxy = ForwardProxy(9)
    async with serve_web(proxy.forward) as address, serve_hostile(f"https://{host}:9/meta") as url:
        set_proxies(monkeypatch, HTTPS_PROXY=address)
        gateway = await serve_shared_gateway(gateway_data_dir=tmp_path, gateway_public_url="http://gw.test")
        assert (await gateway.post("/api/v1/mcp/servers", {"name": "hostile", "url": url})).status == 201
        ticket = urlsplit((await gateway.post("/api/v1/mcp/servers/hostile/sign-in", {})).body["url"]).query
        status, page = await Browser(gateway.session).open("POST", f"{gateway.base_url}{START_PATH}?{ticket}")
        assert (status, "inside the gateway" in page, proxy.requests) == (502, True, []), page
