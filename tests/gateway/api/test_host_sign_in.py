"""Hosts that sign in at an authorization server."""

import base64
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from gateway.simulator import Simulator
from tests.gateway.api.test_jwt import JwksProvider
from tests.stack import find_free_port, serve_asgi, serve_gateway

REDIRECT = "http://127.0.0.1:9/callback"


class AuthorizationServer:
    """An authorization server whose user agrees at once.

    Tokens are for the resource that the host named. They have the scopes of `granted`, one entry a sign-in, and then
    those that the host asked for.
    """

    def __init__(self) -> None:
        self.url = ""
        self.metadata: dict[str, str] = {}
        self.keys = JwksProvider()
        self.keys.add_key("key")
        self.requests: dict[str, dict[str, str]] = {}
        self.granted: list[str] = []
        self.asked: list[str] = []

    def create_app(self) -> Starlette:
        routes = [
            Route("/.well-known/oauth-authorization-server", self.describe),
            Route("/register", self.register, methods=["POST"]),
            Route("/authorize", self.authorize),
            Route("/token", self.issue_token, methods=["POST"]),
            Mount("/jwks.json", self.keys),
        ]
        return Starlette(routes=routes)

    async def describe(self, _request: Request) -> Response:
        endpoints = {
            f"{name}_endpoint": f"{self.url}/{path}"
            for name, path in (("authorization", "authorize"), ("token", "token"), ("registration", "register"))
        }
        methods = {"response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"]}
        return JSONResponse(
            {"issuer": self.url, "jwks_uri": f"{self.url}/jwks.json/", **endpoints, **methods, **self.metadata}
        )

    async def register(self, request: Request) -> Response:
        return JSONResponse({**await request.json(), "client_id": "host"}, status_code=201)

    async def authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        self.requests["code-1"] = query
        self.asked.append(query.get("scope", ""))
        return RedirectResponse(f"{query['redirect_uri']}?code=code-1&state={query['state']}")

    async def issue_token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        begun = self.requests.pop(form["code"])
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == begun["code_challenge"]
        scope = self.granted.pop(0) if self.granted else begun.get("scope", "")
        token = self.keys.sign_token("key", iss=self.url, aud=form["resource"], sub="ada", scope=scope)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 600, "scope": scope})


class Storage:
    """Tokens of a host, in memory."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.fixture
async def authorization_server() -> AsyncGenerator[AuthorizationServer]:
    server = AuthorizationServer()
    async with serve_asgi(server.create_app()) as url:
        server.url = url
        yield server


@asynccontextmanager
async def sign_in(base_url: str, path: str = "/mcp") -> AsyncGenerator[Client]:
    """Connect a host that knows nothing but the address of `/mcp`."""
    answers: list[dict[str, str]] = []

    async def visit(url: str) -> None:
        async with httpx2.AsyncClient(timeout=30) as browser:
            location = (await browser.get(url)).headers["location"]
        answers.append({name: values[0] for name, values in parse_qs(urlsplit(location).query).items()})

    async def return_code() -> AuthorizationCodeResult:
        answer = answers.pop()
        return AuthorizationCodeResult(code=answer["code"], state=answer["state"])

    metadata = OAuthClientMetadata.model_validate({"redirect_uris": [REDIRECT], "client_name": "a host"})
    auth = OAuthClientProvider(f"{base_url}{path}", metadata, Storage(), visit, return_code)
    async with (
        httpx2.AsyncClient(auth=auth, timeout=30) as http,
        Client(streamable_http_client(f"{base_url}{path}", http_client=http)) as host,
    ):
        yield host


async def test_host_signs_in_by_itself_with_the_address_alone(
    database_url: str, simulator: Simulator, tools_url: str, authorization_server: AuthorizationServer
) -> None:
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    settings: dict[str, Any] = {
        "jwt_jwks_url": f"{authorization_server.url}/jwks.json/",
        "jwt_issuer": authorization_server.url,
        "jwt_audience": f"{address}/mcp",
        "gateway_public_url": address,
    }
    async with serve_gateway(database_url, simulator, tools_url, port=port, **settings) as gateway:
        refused = await gateway.post("/mcp", {})
        assert refused.status == 401
        url = f"{address}/.well-known/oauth-protected-resource/mcp"
        assert refused.headers["WWW-Authenticate"] == f'Bearer resource_metadata="{url}"'
        assert (await gateway.get("/api/v1/models")).headers["WWW-Authenticate"] == "Bearer"
        async with sign_in(address) as host:
            assert "calculator" in {tool.name for tool in (await host.list_tools()).tools}
            await host.call_tool("add_task", {"title": "Buy milk"})
            listed = await host.call_tool("list_tasks", {})
            assert "Buy milk" in str(listed.content)


async def test_host_whose_token_lacks_a_scope_signs_in_again_for_it(
    database_url: str, simulator: Simulator, tools_url: str, authorization_server: AuthorizationServer
) -> None:
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    settings: dict[str, Any] = {
        "jwt_jwks_url": f"{authorization_server.url}/jwks.json/",
        "jwt_issuer": authorization_server.url,
        "jwt_audience": f"{address}/mcp",
        "jwt_scope_claim": "scope",
        "gateway_public_url": address,
    }
    authorization_server.granted = ["history"]
    async with serve_gateway(database_url, simulator, tools_url, port=port, **settings) as gateway:
        metadata = (await gateway.get("/.well-known/oauth-protected-resource/mcp")).body
        assert metadata["scopes_supported"] == ["tools"]
        claims = {"iss": authorization_server.url, "aud": f"{address}/mcp", "sub": "ada", "scope": "history"}
        narrow = {"Authorization": f"Bearer {authorization_server.keys.sign_token('key', **claims)}"}
        refused = await gateway.post("/mcp", {}, headers=narrow)
        assert refused.status == 403
        assert refused.headers["WWW-Authenticate"].startswith(
            'Bearer error="insufficient_scope", scope="history tools", resource_metadata="'
        )
        assert "WWW-Authenticate" not in (await gateway.post("/api/v1/chat", {}, headers=narrow)).headers
        async with sign_in(address) as host:
            assert "calculator" in {tool.name for tool in (await host.list_tools()).tools}
    first, second = authorization_server.asked
    assert first == "tools"
    assert {"history", "tools"} <= set(second.split())


async def test_gateway_without_an_authorization_server_names_none(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, api_key="k" * 20) as gateway:
        assert (await gateway.get("/.well-known/oauth-protected-resource")).status == 404
        assert (await gateway.post("/mcp", {})).headers["WWW-Authenticate"] == "Bearer"
