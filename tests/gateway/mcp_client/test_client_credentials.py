"""Tokens that the gateway gets for itself, without a person."""

import base64
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.mcp_client.oauth.grants import renewed_token
from gateway.mcp_client.oauth.grants.gateway_tokens import GatewayTokenProvider
from gateway.ports.servers import ServerConfig
from tests.stack import serve_asgi

SECRET = "a-secret-of-the-gateway"


class ProtectedServer:
    """MCP endpoint and authorization server that record token requests."""

    def __init__(self) -> None:
        self.origin = ""
        self.issuer = ""
        self.lifetime = 3_600
        self.is_failing = False
        self.forms: list[dict[str, str]] = []
        self.headers: list[str | None] = []
        self.app = Starlette(
            routes=[
                Route("/mcp", self._refuse, methods=["POST"]),
                Route("/.well-known/oauth-protected-resource/mcp", self._describe_resource),
                Route("/.well-known/oauth-authorization-server", self._describe_issuer),
                Route("/token", self._give_token, methods=["POST"]),
            ]
        )

    async def _refuse(self, request: Request) -> Response:
        is_valid = request.headers.get("Authorization", "").startswith("Bearer token-")
        metadata = f'Bearer resource_metadata="{self.origin}/.well-known/oauth-protected-resource/mcp"'
        return Response(status_code=200 if is_valid else 401, headers={"WWW-Authenticate": metadata})

    async def _describe_resource(self, _: Request) -> Response:
        return JSONResponse({"resource": f"{self.origin}/mcp", "authorization_servers": [self.issuer or self.origin]})

    async def _describe_issuer(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.origin,
                "authorization_endpoint": f"{self.origin}/authorize",
                "token_endpoint": f"{self.origin}/token",
                "response_types_supported": ["code"],
            }
        )

    async def _give_token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.forms.append(form)
        self.headers.append(request.headers.get("Authorization"))
        if self.is_failing:
            return JSONResponse({"error": "temporarily_unavailable"}, status_code=503)
        token = f"token-{len(self.forms)}"
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime})

    def create_tokens(self, **oauth: Any) -> GatewayTokenProvider:
        entry = {"client_id": "gateway", "grant_type": "client_credentials", "issuer": self.origin, **oauth}
        config = {"name": "s", "url": f"{self.origin}/mcp", "oauth": entry}
        return GatewayTokenProvider(ServerConfig.model_validate(config))


@asynccontextmanager
async def serve_protected() -> AsyncGenerator[ProtectedServer]:
    server = ProtectedServer()
    async with serve_asgi(server.app) as origin:
        server.origin = origin
        yield server


@pytest.fixture
async def server() -> AsyncGenerator[ProtectedServer]:
    async with serve_protected() as server:
        yield server


async def test_secret_gets_one_token_for_many_requests(server: ProtectedServer) -> None:
    basic = server.create_tokens(client_secret=SECRET, scope="read")
    assert [await basic.get_token() for _ in range(3)] == ["token-1"] * 3
    assert server.forms[0]["grant_type"] == "client_credentials"
    assert (server.forms[0]["scope"], server.forms[0]["resource"]) == ("read", f"{server.origin}/mcp")
    assert base64.b64decode((server.headers[0] or "").removeprefix("Basic ")).decode() == f"gateway:{SECRET}"
    posted = server.create_tokens(client_secret=SECRET, token_endpoint_auth_method="client_secret_post")
    assert await posted.get_token() == "token-2"
    assert (server.forms[1]["client_secret"], server.headers[1]) == (SECRET, None)


async def test_private_key_signs_an_assertion_for_the_issuer(server: ProtectedServer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    tokens = server.create_tokens(private_key=pem, signing_algorithm="ES256")
    assert await tokens.get_token() == "token-1"
    claims = jwt.decode(
        server.forms[0]["client_assertion"], key.public_key(), algorithms=["ES256"], audience=server.origin
    )
    assert (claims["iss"], claims["sub"]) == ("gateway", "gateway")
    assert claims["exp"] - time.time() < 301


async def test_assertion_of_the_platform_authenticates_the_gateway(server: ProtectedServer, tmp_path: Path) -> None:
    file = tmp_path / "assertion"
    file.write_text("of.the.platform\n")
    assert await server.create_tokens(assertion_file=str(file)).get_token() == "token-1"
    form = server.forms[0]
    assert (form["grant_type"], form["client_assertion"]) == ("client_credentials", "of.the.platform")


async def test_refused_token_is_replaced_once(server: ProtectedServer) -> None:
    tokens = server.create_tokens(client_secret=SECRET)
    first = await tokens.get_token()
    assert await tokens.replace_token(first) == "token-2"
    assert await tokens.replace_token(first) == "token-2"  # another request has replaced it


async def test_failing_authorization_server_is_not_asked_again_at_once(
    server: ProtectedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewed_token, "_MIN_BACKOFF_SECONDS", 30.0)  # on a stalled machine half a second is over
    server.is_failing = True
    tokens = server.create_tokens(client_secret=SECRET)
    for _ in range(5):
        with pytest.raises(httpx2.ConnectError):
            await tokens.get_token()
    assert len(server.forms) == 1


async def test_other_authorization_server_gets_no_credentials(server: ProtectedServer) -> None:
    async with AsyncExitStack() as stack:
        thief = await stack.enter_async_context(serve_protected())
        server.issuer = thief.origin
        with pytest.raises(httpx2.ConnectError):
            await server.create_tokens(client_secret=SECRET).get_token()
        assert thief.forms == server.forms == []


@pytest.mark.parametrize(
    "oauth",
    [
        {"client_secret": SECRET},
        {"issuer": "https://login.example"},
        {"issuer": "https://login.example", "client_secret": SECRET, "private_key": "pem"},
    ],
)
def test_incomplete_credentials_are_refused_and_secrets_are_not_shown(oauth: dict[str, str]) -> None:
    entry = {"client_id": "gateway", "grant_type": "client_credentials", **oauth}
    with pytest.raises(ValidationError, match=r"needs a|needs the|not both"):
        ServerConfig.model_validate({"name": "s", "url": "https://mcp.example/mcp", "oauth": entry})
    valid = {**entry, "issuer": "https://login.example", "client_secret": SECRET}
    valid.pop("private_key", None)
    config = ServerConfig.model_validate({"name": "s", "url": "https://mcp.example/mcp", "oauth": valid})
    assert SECRET not in repr(config)
    assert not config.allows_sign_in
