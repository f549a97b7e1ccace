"""Tokens that name the user of a call to an MCP server."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from pydantic import SecretStr

from gateway.domain.messages import Principal, ToolResult
from gateway.mcp_client.identity_keys import IdentityKeys
from gateway.ports.tools import ToolCallRequest
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import SECRET, Gateway, find_free_port, serve_asgi, serve_gateway
from tests.tools_server.conftest import serve_tools

ADA = Principal("ada")


@asynccontextmanager
async def serve_two_servers(
    database_url: str, simulator: Simulator, tmp_path: Path, secret: SecretStr | None = None, **tool_settings: Any
) -> AsyncGenerator[tuple[Gateway, str]]:
    """Serve a gateway with the tool server and a curious server.

    Yield the gateway and the tool server's address. "PORT" in `tool_settings` is the gateway's port.
    """
    port = find_free_port()
    settings = {"gateway_data_dir": tmp_path, **tool_settings}
    settings = {
        name: value.replace("PORT", str(port)) if isinstance(value, str) else value for name, value in settings.items()
    }
    file = tmp_path / "mcp.json"
    async with (
        serve_tools(database_url=database_url, tools_server_secret=secret, **settings) as tools,
        serve_asgi(TrialServer().create_app()) as curious,
    ):
        servers = {
            "tools": {"url": f"{tools}/mcp", "prefix": "", "identity": "gateway"},
            "curious": {"url": f"{curious}/mcp", "identity": "gateway"},
        }
        file.write_text(json.dumps({"mcpServers": servers}))
        own = {"mcp_config": file, "tools_server_secret": secret, "gateway_data_dir": tmp_path}
        async with serve_gateway(database_url, simulator, None, port=port, **own) as gateway:
            yield gateway, tools


async def call(gateway: Gateway, tool: str, **arguments: Any) -> str:
    """Call a tool for Ada; return its text."""
    spec = await eventually(lambda: gateway.state.toolbox.find_tool(tool))
    result = await gateway.state.toolbox.call_tool(ToolCallRequest(spec, arguments, ADA))
    assert isinstance(result, ToolResult)
    return str(result.content[0]["text"])


async def replay(tools: str, token: str) -> int:
    """Send a token to the tool server; return the status."""
    async with httpx2.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {token}"}) as client:
        return (await client.post(f"{tools}/tools/call", json={"name": "list_tasks"})).status_code


@pytest.mark.parametrize(
    "keys", [{"tools_server_gateway_jwks_url": "http://127.0.0.1:PORT/.well-known/jwks.json"}, {}], ids=["url", "file"]
)
async def test_token_for_one_server_is_refused_by_another(
    database_url: str, simulator: Simulator, tmp_path: Path, keys: dict[str, Any]
) -> None:
    async with serve_two_servers(database_url, simulator, tmp_path, **keys) as (gateway, tools):
        assert "Added task #1" in await call(gateway, "add_task", title="Ada's")
        stolen = (await call(gateway, "curious_whoami")).removeprefix("Bearer ")
        jwks = jwt.PyJWKSet.from_dict((await gateway.get("/.well-known/jwks.json")).body)
        claims = jwt.decode(stolen, jwks.keys[0], ["ES256"], issuer="agent-gateway", options={"verify_aud": False})
        assert claims["sub"] == "ada"
        assert claims["aud"] not in (f"{tools}/mcp", "tools-server")
        assert await replay(tools, stolen) == 401


async def test_with_the_deprecated_secret_each_server_has_its_own_audience_too(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    """The tool server knows only the secret, as that of release 0.1.0."""
    other_directory = tmp_path / "other"
    stack = serve_two_servers(database_url, simulator, tmp_path, SecretStr(SECRET), gateway_data_dir=other_directory)
    async with stack as (gateway, tools):
        assert "Added task #1" in await call(gateway, "add_task", title="Ada's")
        stolen = (await call(gateway, "curious_whoami")).removeprefix("Bearer ")
        assert jwt.get_unverified_header(stolen)["alg"] == "ES256"
        assert await replay(tools, stolen) == 401


async def test_who_can_verify_cannot_sign(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    async with serve_two_servers(database_url, simulator, tmp_path) as (gateway, tools):
        document = (await gateway.get("/.well-known/jwks.json", headers={"Host": "gateway:8000"})).body
        (key,) = document["keys"]
        assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}  # no private member `d`
        assert json.loads((tmp_path / "identity-jwks.json").read_text()) == document
        now = int(time.time())
        claims = {"iss": "agent-gateway", "aud": f"{tools}/mcp", "sub": "ada", "iat": now, "exp": now + 60}
        forged = [
            jwt.encode(claims, key["x"], "HS256", headers={"kid": key["kid"]}),
            jwt.encode(claims, "", "none", headers={"kid": key["kid"]}),
            IdentityKeys(["a secret of somebody else"]).sign(claims),
        ]
        assert await asyncio.gather(*(replay(tools, token) for token in forged)) == [401] * len(forged)


def test_keys_of_replaced_secrets_stay_published() -> None:
    old, new = IdentityKeys(["old secret"]), IdentityKeys(["new secret", "old secret"])
    assert old.get_jwks()["keys"][0] in new.get_jwks()["keys"]
    key_ids = {key["kid"] for key in new.get_jwks()["keys"]}
    assert len(key_ids) == 2
    assert jwt.get_unverified_header(new.sign({"sub": "ada"}))["kid"] in key_ids
