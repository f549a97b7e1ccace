"""A gateway with an authorization server that does not answer."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from mcp.shared.auth import OAuthClientInformationFull
from pydantic import AnyUrl

from gateway.domain.grants import Grant
from gateway.domain.messages import Principal, ToolResult
from gateway.ports.tools import ToolCallRequest
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.gateway.mcp_client.test_grants_without_database import OPEN_TRANSACTIONS_QUERY
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway

USERS = [f"user{number}" for number in range(20)]
"""More than the pool has connections."""


async def store_expired_grants(gateway: Gateway, vault: OAuthMcpServer) -> None:
    client = OAuthClientInformationFull(
        client_id="gateway", token_endpoint_auth_method="none", redirect_uris=[AnyUrl("http://127.0.0.1/callback")]
    )
    await vault.register_client(client)
    for user in USERS:
        token = vault._issue_tokens("gateway", ["read"], vault.url)
        async with gateway.state.toolbox.sign_in._grants.begin_transaction("vault", user, vault.url) as transaction:
            transaction.grant = Grant(
                client=client.model_dump(mode="json", exclude_none=True),
                access_token=token.access_token,
                refresh_token=token.refresh_token,
                expires_at=time.time() - 1,
                scope="read",
                token_endpoint=f"{vault.url.removesuffix('/mcp')}/token",
                resource=vault.url,
            )


async def test_slow_token_endpoint_leaves_the_gateway_usable(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = find_free_port()
    vault = OAuthMcpServer(port)
    exchange, waiting, answer_now = vault.exchange_refresh_token, 0, asyncio.Event()

    async def exchange_slowly(*arguments: Any) -> Any:
        nonlocal waiting
        waiting += 1
        await answer_now.wait()
        return await exchange(*arguments)

    async def has_no_open_transactions() -> bool:
        return await db.fetchval(OPEN_TRANSACTIONS_QUERY) == 0

    monkeypatch.setattr(vault, "exchange_refresh_token", exchange_slowly)
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"vault": {"url": vault.url, "share": "user"}}}))
    async with (
        serve_asgi(vault.create_app(), port),
        serve_gateway(database_url, simulator, None, mcp_config=file, gateway_data_dir=tmp_path) as gateway,
    ):
        await store_expired_grants(gateway, vault)
        spec = await eventually(lambda: gateway.state.toolbox.find_tool("vault_sign_in"))
        calls = [
            asyncio.create_task(gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, Principal(user))))
            for user in USERS
        ]
        await eventually(lambda: waiting == len(USERS))
        await eventually(has_no_open_transactions)  # of those waiting; the gateway's own ones are short
        replies = await asyncio.gather(*(gateway.get("/api/v1/conversations") for _ in range(30)))
        assert {reply.status for reply in replies} == {200}
        assert (await gateway.chat("Hello")).status == 200
        assert not any(call.done() for call in calls)
        answer_now.set()
        results = await asyncio.gather(*calls)
    assert all(isinstance(result, ToolResult) and result.outcome == "ok" for result in results), results
    assert vault.refreshed == len(USERS)
