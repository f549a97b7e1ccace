"""Tokens of several issuers, and tokens for toolsets."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from gateway.config import ConfigError, load_settings
from gateway.simulator import Simulator
from tests.gateway.api.test_host_sign_in import AuthorizationServer, sign_in
from tests.gateway.api.test_jwt import make_bearer_headers, make_claims
from tests.gateway.api.test_toolsets import connect
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture
async def servers() -> AsyncGenerator[list[AuthorizationServer]]:
    """Two authorization servers."""
    async with AsyncExitStack() as stack:
        running = [AuthorizationServer(), AuthorizationServer()]
        for server in running:
            server.url = await stack.enter_async_context(serve_asgi(server.create_app()))
        yield running


@pytest.fixture
async def gateway(
    servers: list[AuthorizationServer], database_url: str, simulator: Simulator, tools_url: str
) -> AsyncGenerator[Gateway]:
    """A gateway that takes tokens of both, and finds their keys itself."""
    port = find_free_port()
    settings: dict[str, Any] = {
        "jwt_issuer": ",".join(server.url for server in servers),
        "jwt_audience": f"http://127.0.0.1:{port}/mcp",
        "gateway_public_url": f"http://127.0.0.1:{port}",
    }
    async with serve_gateway(database_url, simulator, tools_url, port=port, **settings) as running:
        yield running


def sign(server: AuthorizationServer, gateway: Gateway, **claims: Any) -> dict[str, str]:
    """Return the headers of a request with a token."""
    claims = make_claims(**{"iss": server.url, "aud": f"{gateway.base_url}/mcp", **claims})
    # Claims of any type: `jwt.encode` takes texts only.
    token = jwt.api_jws.encode(
        json.dumps(claims).encode(), server.keys.keys["key"], algorithm="RS256", headers={"kid": "key"}
    )
    return make_bearer_headers(token)


async def test_same_subject_of_two_issuers_is_two_users(servers: list[AuthorizationServer], gateway: Gateway) -> None:
    metadata = (await gateway.get("/.well-known/oauth-protected-resource/mcp")).body
    assert metadata["authorization_servers"] == [server.url for server in servers]
    first, second = (sign(server, gateway) for server in servers)
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    turn = (await gateway.post("/api/v1/chat", chat, headers=first)).body["turn_id"]
    assert (await gateway.get(f"/api/v1/turns/{turn}", headers=first)).status == 200
    assert (await gateway.get(f"/api/v1/turns/{turn}", headers=second)).status == 404
    other = (await gateway.post("/api/v1/chat", chat, headers=second)).body["turn_id"]
    assert (await gateway.get(f"/api/v1/turns/{other}", headers=first)).status == 404


async def test_issuer_cannot_sign_for_another_issuer(servers: list[AuthorizationServer], gateway: Gateway) -> None:
    first, second = servers
    assert (await gateway.get("/api/v1/models", headers=sign(first, gateway))).status == 200
    hostile = {
        "signed by the other": sign(second, gateway, iss=first.url),
        "signed by the other, reversed": sign(first, gateway, iss=second.url),
        "the other's user": sign(first, gateway, sub=f"{second.url}#ada"),
        "no user of the other": sign(second, gateway, sub=""),
        "a blank in front": sign(second, gateway, sub=" ada"),
        "no issuer": sign(first, gateway, iss=None),
        "a list of issuers": sign(first, gateway, iss=[first.url, second.url]),
        "an object as issuer": sign(first, gateway, iss={"url": first.url}),
        "unknown issuer": sign(first, gateway, iss="http://127.0.0.1:9"),
        "with a slash": sign(first, gateway, iss=f"{first.url}/"),
        "unsigned": make_bearer_headers(
            jwt.encode({"iss": first.url, "aud": f"{gateway.base_url}/mcp", "sub": "ada", "exp": 9e9}, "", "none")
        ),
    }
    for attack, headers in hostile.items():
        reply = await gateway.post("/mcp", LIST, headers=headers | ACCEPT)
        assert reply.status == 401, attack
        assert reply.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"'), attack


async def test_metadata_of_another_issuer_gives_no_keys(servers: list[AuthorizationServer], gateway: Gateway) -> None:
    servers[0].metadata = {"issuer": "http://127.0.0.1:9"}
    servers[1].metadata = {"jwks_uri": "file:///etc/passwd"}
    for server in servers:
        assert (await gateway.get("/api/v1/models", headers=sign(server, gateway))).status == 503


HOSTILE_AUDIENCES = (
    *("/mcp/server-card", "/mcp/sums/more", "/mcp/../api", "/mcp//", "/mcp?x=1", "/mcpx", "/", "/api/v1"),
    *("https://others.example/mcp", [], [["/mcp"]], {"aud": "/mcp"}, 7, None),
)


async def test_token_opens_only_the_resource_that_it_names(
    servers: list[AuthorizationServer], gateway: Gateway
) -> None:
    def sign_for(audience: Any) -> dict[str, str]:
        names = audience if isinstance(audience, list) else [audience]
        full = [gateway.base_url + name if str(name).startswith("/") else name for name in names]
        return sign(servers[0], gateway, aud=full if isinstance(audience, list) else full[0])

    toolset = {"name": "sums", "tools": ["calculator"]}
    admin = sign(servers[0], gateway, role="admin")
    assert (await gateway.post("/api/v1/toolsets", toolset, headers=admin)).status == 201
    for audience in ("/mcp", "/mcp/", ["https://others.example", "/mcp"], ["/mcp/sums", "/mcp"]):
        tools = (await gateway.get("/api/v1/tools", headers=sign_for(audience))).body["tools"]
        assert {"calculator", "add_task"} <= {tool["name"] for tool in tools}, audience
    for audience in ("/mcp/sums", "/mcp/sums/"):
        tools = (await gateway.get("/api/v1/tools", headers=sign_for(audience))).body["tools"]
        assert {tool["name"] for tool in tools} == {"calculator"}, audience
        for path in ("/mcp", "/mcp/sums"):
            async with connect(gateway, path, sign_for(audience)) as host:
                assert "add_task" not in {tool.name for tool in (await host.list_tools()).tools}
        assert (await gateway.post("/mcp/others", LIST, headers=sign_for(audience) | ACCEPT)).status == 403
    for audience in HOSTILE_AUDIENCES:
        for path in ("/mcp", "/mcp/sums"):
            reply = await gateway.post(path, LIST, headers=sign_for(audience) | ACCEPT)
            assert reply.status == 401, audience


async def test_toolset_has_metadata_of_its_own(servers: list[AuthorizationServer], gateway: Gateway) -> None:
    for path in ("/mcp", "/mcp/sums"):
        url = f"{gateway.base_url}/.well-known/oauth-protected-resource{path}"
        for address in (path, f"{path}/"):
            refused = await gateway.post(address, LIST)
            assert refused.headers["WWW-Authenticate"] == f'Bearer resource_metadata="{url}"'
        metadata = (await gateway.get(url.removeprefix(gateway.base_url))).body
        assert metadata["resource"] == f"{gateway.base_url}{path}"
        evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
        for reply in (
            await gateway.get(url.removeprefix(gateway.base_url), headers=evil),
            await gateway.post(path, {}, headers=evil),
        ):
            assert "evil.example" not in f"{reply.headers} {reply.body}"
    for path in ("/mc", "/mcp/sums/more", "/mcp/server-card", "/mcp/a%20b", f"/mcp/{'a' * 2_000}"):
        assert (await gateway.get(f"/.well-known/oauth-protected-resource{path}")).status in (404, 422), path
    toolset = {"name": "sums", "tools": ["calculator"]}
    admin = sign(servers[0], gateway, role="admin")
    assert (await gateway.post("/api/v1/toolsets", toolset, headers=admin)).status == 201
    async with sign_in(gateway.base_url, "/mcp/sums") as host:
        assert "calculator" in {tool.name for tool in (await host.list_tools()).tools}
    assert len(servers[0].asked) == 1


async def test_metadata_names_the_public_path_of_a_proxy(
    servers: list[AuthorizationServer], database_url: str, simulator: Simulator, tools_url: str
) -> None:
    settings: dict[str, Any] = {"jwt_issuer": servers[0].url, "jwt_audience": "https://gateway.example/base/mcp"}
    public_url = "https://gateway.example/base"
    async with serve_gateway(database_url, simulator, tools_url, gateway_public_url=public_url, **settings) as gateway:
        for path in (
            "/base/.well-known/oauth-protected-resource/mcp",
            "/.well-known/oauth-protected-resource/base/mcp",
        ):
            assert (await gateway.get(path)).body["resource"] == f"{public_url}/mcp", path
        challenge = (await gateway.post("/base/mcp", LIST)).headers["WWW-Authenticate"]
        assert challenge == f'Bearer resource_metadata="{public_url}/.well-known/oauth-protected-resource/mcp"'


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"jwt_issuer": "https://a"}, "JWT_ISSUER and JWT_AUDIENCE"),
        ({"jwt_issuer": "https://a,b", "jwt_audience": "c"}, "without JWT_JWKS_URL"),
        ({"jwt_issuer": "https://a,https://a", "jwt_audience": "c"}, "must differ"),
        ({"jwt_issuer": "https://a,https://b#c", "jwt_audience": "c"}, "no #"),
        (
            {"jwt_issuer": "https://a,https://b", "jwt_audience": "c", "jwt_jwks_url": "https://a/keys"},
            "one URL for each",
        ),
        ({"jwt_issuer": "a,b", "jwt_audience": "c", "jwt_secret": SecretStr("s" * 32)}, "there is one issuer"),
    ],
)
def test_issuers_without_keys_of_their_own_are_rejected(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_settings(_env_file=None, **settings)


async def test_token_of_an_erased_user_finds_no_data(servers: list[AuthorizationServer], gateway: Gateway) -> None:
    ada, admin = sign(servers[0], gateway), sign(servers[0], gateway, sub="root", role="admin")
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    turn = (await gateway.post("/api/v1/chat", chat, headers=ada)).body["turn_id"]
    async with gateway.session.delete(
        f"{gateway.base_url}/api/v1/admin/user-data", params={"user": "ada"}, headers=admin
    ) as erased:
        assert erased.status == 200, await erased.text()
    assert (await gateway.get(f"/api/v1/turns/{turn}", headers=ada)).status == 404
    assert turn not in str((await gateway.get("/api/v1/history", headers=ada)).body)
    assert (await gateway.post("/api/v1/chat", chat, headers=ada)).status == 200
