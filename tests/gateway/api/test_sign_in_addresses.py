"""Sign-ins at MCP servers with hostile OAuth metadata.

It leads into the gateway's own network, or lacks PKCE.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.stack import Gateway, serve_asgi, serve_gateway

ServeHostile = Callable[..., AbstractAsyncContextManager[str]]
Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


class Victim:
    """A service inside the network that must see no connection.

    It listens on 127.0.0.1 and 127.0.0.2.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def accept(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        writer.close()

    def get_url(self, host: str = "127.0.0.1", scheme: str = "https") -> str:
        return f"{scheme}://{host}:{self.port}"


@pytest.fixture
async def victim() -> AsyncGenerator[Victim]:
    victim = Victim()
    server = await asyncio.start_server(victim.accept, "0.0.0.0", 0)
    victim.port = server.sockets[0].getsockname()[1]
    yield victim
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def serve_hostile(
    metadata_url: str | None = None,
    redirect: str | None = None,
    is_legacy: bool = False,
    has_issuer_metadata: bool = True,
    **metadata: Any,
) -> AsyncGenerator[str]:
    """Serve an MCP server that demands OAuth; yield its URL.

    `metadata_url`: where it says its resource metadata is. `redirect`: where its own resource metadata redirects to.
    `is_legacy`: it has no metadata at all. `has_issuer_metadata`: its authorization server has metadata.
    `metadata` changes the metadata of its authorization server; None removes a field.
    """

    def get_origin(request: Request) -> str:
        return f"{request.url.scheme}://{request.url.netloc}"

    async def refuse(request: Request) -> Response:
        url = metadata_url or f"{get_origin(request)}/.well-known/oauth-protected-resource/mcp"
        return Response(status_code=401, headers={"WWW-Authenticate": f'Bearer resource_metadata="{url}"'})

    async def describe_resource(request: Request) -> Response:
        if redirect is not None:
            return RedirectResponse(redirect, 307)
        origin = get_origin(request)
        issuer = metadata.get("issuer") or origin
        return JSONResponse({"resource": f"{origin}/mcp", "authorization_servers": [issuer]})

    async def describe_issuer(request: Request) -> Response:
        origin = get_origin(request)
        document = {
            "issuer": origin,
            "authorization_endpoint": f"{origin}/authorize",
            "token_endpoint": f"{origin}/token",
            "registration_endpoint": f"{origin}/register",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            **metadata,
        }
        return JSONResponse({name: value for name, value in document.items() if value is not None})

    async def register(request: Request) -> Response:
        return JSONResponse({**await request.json(), "client_id": "gateway"}, 201)

    descriptions = [
        Route("/.well-known/oauth-protected-resource/mcp", describe_resource),
        *([Route("/.well-known/oauth-authorization-server", describe_issuer)] if has_issuer_metadata else []),
    ]
    app = Starlette(
        routes=[
            Route("/mcp", refuse, methods=["GET", "POST", "DELETE"]),
            Route("/register", register, methods=["POST"]),
            *([] if is_legacy else descriptions),
        ]
    )
    async with serve_asgi(app) as address:
        yield f"{address}/mcp"


@pytest.fixture
def serve(database_url: str, simulator: Simulator, tmp_path: Path) -> Serve:
    """Serve gateways whose file configures the server `hostile`, if at all."""

    @asynccontextmanager
    async def serve_with_entry(**entry: Any) -> AsyncGenerator[Gateway]:
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": {"hostile": entry} if entry else {}}))
        async with serve_gateway(
            database_url,
            simulator,
            None,
            mcp_config=file,
            gateway_data_dir=tmp_path,
            gateway_public_url="http://gw.test",
        ) as gateway:
            yield gateway

    return serve_with_entry


async def start_sign_in(gateway: Gateway) -> tuple[int, str]:
    """Submit the form of the sign-in page.

    Return the status, and the page or the address that it leads to.
    """

    async def is_refused() -> bool:
        servers = (await gateway.get("/api/v1/mcp/servers")).body["servers"]
        return servers[0]["state"] == "needs_auth"

    await eventually(is_refused)
    reply = await gateway.post("/api/v1/mcp/servers/hostile/sign-in", {})
    assert reply.status == 200, reply.body
    url = f"{gateway.base_url}{urlsplit(reply.body['url']).path}?{urlsplit(reply.body['url']).query}"
    async with gateway.session.post(url, allow_redirects=False) as response:
        return response.status, response.headers.get("Location") or await response.text()


HOSTILE_METADATA = {
    "resource-metadata": lambda victim: {"metadata_url": f"{victim.get_url()}/latest/meta-data"},
    "resource-metadata-http": lambda victim: {"metadata_url": f"{victim.get_url(scheme='http')}/latest/meta-data"},
    "resource-metadata-by-name": lambda victim: {"metadata_url": f"{victim.get_url('localhost')}/latest/meta-data"},
    "user-information": lambda victim: {"metadata_url": f"https://127.0.0.1:80@127.0.0.1:{victim.port}/latest"},
    "mapped-address": lambda victim: {"metadata_url": f"{victim.get_url('[::ffff:127.0.0.1]')}/latest"},
    "short-address": lambda victim: {"metadata_url": f"{victim.get_url('127.1')}/latest"},
    "number": lambda victim: {"metadata_url": f"{victim.get_url('2130706433')}/latest"},
    "any-address": lambda victim: {"metadata_url": f"{victim.get_url('0.0.0.0')}/latest"},
    "issuer": lambda victim: {"issuer": victim.get_url()},
    "registration-endpoint": lambda victim: {"registration_endpoint": f"{victim.get_url()}/register"},
}


@pytest.mark.parametrize("attack", list(HOSTILE_METADATA))
async def test_server_added_at_run_time_does_not_lead_the_gateway_to_internal_addresses(
    serve: Serve, victim: Victim, attack: str
) -> None:
    async with serve_hostile(**HOSTILE_METADATA[attack](victim)) as url, serve() as gateway:
        assert (await gateway.post("/api/v1/mcp/servers", {"name": "hostile", "url": url})).status == 201
        status, page = await start_sign_in(gateway)
    assert (status, victim.connections) == (502, 0), page
    assert f":{victim.port}" not in page


async def test_redirect_to_an_internal_address_is_not_followed(serve: Serve, victim: Victim) -> None:
    redirect = f"{victim.get_url(scheme='http')}/latest/meta-data"
    async with serve_hostile(redirect=redirect) as url, serve(url=url) as gateway:
        _, location = await start_sign_in(gateway)
    assert (urlsplit(location).port, victim.connections) == (urlsplit(url).port, 0)


@pytest.mark.parametrize("client", [{}, {"oauth": {"client_id": "cid", "client_secret": "s3cret"}}])
async def test_token_endpoint_of_a_server_added_at_run_time_is_not_internal(
    serve: Serve, victim: Victim, client: dict[str, Any]
) -> None:
    async with serve_hostile(token_endpoint=f"{victim.get_url()}/token") as url, serve() as gateway:
        assert (await gateway.post("/api/v1/mcp/servers", {"name": "hostile", "url": url, **client})).status == 201
        reply = await gateway.post("/api/v1/mcp/servers/hostile/sign-in", {})
        ticket = urlsplit(reply.body["url"]).query.removeprefix("ticket=")
        page = await gateway.state.toolbox.sign_in.begin_sign_in(ticket)
        state = dict(pair.split("=", 1) for pair in urlsplit(page).query.split("&"))["state"]
        callback = f"{gateway.base_url}/api/v1/mcp/oauth/callback?state={state}&code=abc"
        async with gateway.session.get(callback, headers={"Cookie": f"agent_gateway_login={ticket}"}) as response:
            assert (response.status, victim.connections) == (502, 0), await response.text()


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
async def test_server_of_the_file_leads_only_to_configured_hosts_inside(
    serve: Serve, victim: Victim, host: str
) -> None:
    async with serve_hostile(issuer=victim.get_url(host)) as url:
        async with serve(url=url) as gateway:
            assert (await start_sign_in(gateway))[0] == 502
            assert victim.connections == 0
        async with serve(url=url, oauth_hosts=[host]) as gateway:
            assert (await start_sign_in(gateway))[0] == 502  # the victim does not speak TLS
            assert victim.connections > 0


async def test_internal_server_of_the_file_signs_in_at_its_own_host(serve: Serve) -> None:
    async with serve_hostile() as url, serve(url=url) as gateway:
        status, location = await start_sign_in(gateway)
    assert (status, urlsplit(location).path) == (303, "/authorize")


async def test_server_added_at_run_time_without_metadata_is_refused(serve: Serve) -> None:
    """Protocol 2025-03-26 has servers without metadata, which cannot declare PKCE."""
    async with serve_hostile(is_legacy=True) as url, serve() as gateway:
        assert (await gateway.post("/api/v1/mcp/servers", {"name": "hostile", "url": url})).status == 201
        status, page = await start_sign_in(gateway)
    assert (status, "PKCE" in page) == (502, True), page


@pytest.mark.parametrize("methods", [None, [], ["plain"]])
async def test_authorization_server_without_pkce_is_refused(serve: Serve, methods: list[str] | None) -> None:
    async with serve_hostile(code_challenge_methods_supported=methods) as url, serve(url=url) as gateway:
        status, page = await start_sign_in(gateway)
    assert (status, "PKCE" in page) == (502, True), page


async def test_authorization_server_whose_metadata_do_not_load_is_refused(serve: Serve) -> None:
    """The server has resource metadata, so it is newer than protocol 2025-03-26."""
    async with serve_hostile(has_issuer_metadata=False) as url, serve(url=url) as gateway:
        status, page = await start_sign_in(gateway)
    assert (status, "PKCE" in page) == (502, True), page
