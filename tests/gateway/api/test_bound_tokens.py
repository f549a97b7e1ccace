"""Servers whose tokens are bound to a key of the gateway (DPoP)."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.mcp_client.oauth.dpop import DpopKey
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_sign_in import (
    ADA,
    Browser,
    call_protected_tool,
    get_connected_server,
    get_text,
    sign_in_as_admin,
)
from tests.gateway.mcp_client.dpop_server import DpopServer
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway


@asynccontextmanager
async def serve_bound(
    database_url: str, simulator: Simulator, directory: Path, *, lifetime: int = 3_600, **options: bool | int
) -> AsyncGenerator[tuple[Gateway, DpopServer, OAuthMcpServer]]:
    """A gateway beside a server that binds its tokens."""
    port, gateway_port = find_free_port(), find_free_port()
    server = OAuthMcpServer(port, lifetime=lifetime)
    dpop = DpopServer(server.create_app(), f"http://127.0.0.1:{port}", **options)  # type: ignore[arg-type]
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"vault": {"url": server.url}}}))
    settings = {"gateway_public_url": f"http://127.0.0.1:{gateway_port}", "gateway_data_dir": directory}
    async with (
        serve_asgi(dpop, port),
        serve_gateway(database_url, simulator, None, port=gateway_port, mcp_config=file, **settings) as gateway,
    ):
        yield gateway, dpop, server


@pytest.mark.faults
async def test_bound_token_is_used_refreshed_and_survives_a_restart(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection
) -> None:
    async with serve_bound(database_url, simulator, tmp_path, lifetime=30) as (gateway, dpop, server):
        await sign_in_as_admin(gateway)
        assert "the vault of" in get_text(await call_protected_tool(gateway, ADA))
        await eventually(lambda: server.refreshed > 0)  # a token of thirty seconds is refreshed at once
        assert "the vault of" in get_text(await call_protected_tool(gateway, ADA))
        assert len(set(dpop.bound.values())) == 1
        settings: dict[str, Any] = {"gateway_data_dir": tmp_path, "mcp_config": tmp_path / "mcp.json"}
        async with serve_gateway(database_url, simulator, None, **settings) as other:
            await eventually(lambda: other.state.toolbox.find_tool("vault_whose_vault"))
            assert "the vault of" in get_text(await call_protected_tool(other, ADA))
        assert dpop.schemes == {"", "DPoP"}
    stored = str(await db.fetch("SELECT g::text FROM oauth_grants g"))
    assert stored != "[]"
    assert not any(text in stored for text in ("PRIVATE KEY", *dpop.bound))


@pytest.mark.faults
async def test_each_sign_in_has_a_key_of_its_own(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    async with serve_bound(database_url, simulator, tmp_path) as (gateway, dpop, _):
        await sign_in_as_admin(gateway)
        await sign_in_as_admin(gateway)
        assert len(set(dpop.bound.values())) == 2
        assert "the vault of" in get_text(await call_protected_tool(gateway, ADA))


async def test_nonce_that_changes_with_each_request_is_followed(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    async with serve_bound(database_url, simulator, tmp_path, nonce_uses=1) as (gateway, _, _):
        await sign_in_as_admin(gateway)
        for _ in range(3):
            assert "the vault of" in get_text(await call_protected_tool(gateway, ADA))


@pytest.mark.faults
async def test_server_that_accepts_no_nonce_gets_two_requests_only(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    async with serve_bound(database_url, simulator, tmp_path, nonce_uses=0) as (gateway, dpop, _):
        await eventually(lambda: get_connected_server(gateway))
        reply = await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})
        _, page = await Browser(gateway.session).sign_in(reply.body["url"])
        assert "did not give a token" in page
        assert (dpop.token_requests, dpop.bound) == (2, {})


async def test_server_of_bearer_tokens_gets_these_from_an_issuer_that_knows_both(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    async with serve_bound(database_url, simulator, tmp_path, server_knows=False) as (gateway, dpop, _):
        await sign_in_as_admin(gateway)
        assert "the vault of" in get_text(await call_protected_tool(gateway, ADA))
        assert (dpop.schemes, dpop.bound) == ({"Bearer"}, {})


def test_stored_key_is_the_same_key() -> None:
    key = DpopKey()
    assert DpopKey(key.pem).pem == key.pem
    assert DpopKey().pem != key.pem
