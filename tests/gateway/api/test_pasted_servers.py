"""Configuration files of hosts, pasted into `POST /api/v1/mcp/servers`."""

from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest

from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import Gateway, Reply, serve_asgi

PATH = "/api/v1/mcp/servers"
NOWHERE = "http://127.0.0.1:9/mcp"


@pytest.fixture
async def trial_url() -> AsyncGenerator[str]:
    async with serve_asgi(TrialServer().create_app()) as url:
        yield f"{url}/mcp"


async def paste(gateway: Gateway, servers: dict[str, Any], key: str = "mcpServers") -> Reply:
    return await gateway.post(PATH, {key: servers})


async def test_pasted_servers_are_added_together(gateway: Gateway, trial_url: str) -> None:
    created = await paste(
        gateway,
        {
            "first": {
                "url": trial_url,
                "type": "streamable-http",
                "headers": {"X-Secret": "geheim"},
                "alwaysAllow": [],
            },
            "second": {"serverUrl": trial_url, "disabled": True, "description": "unknown members are ignored"},
        },
    )
    assert created.status == 201
    assert "geheim" not in str(created.body)
    await eventually(lambda: gateway.state.toolbox.find_tool("first_echo") is not None)
    states = {server["name"]: server["state"] for server in (await gateway.get(PATH)).body["servers"]}
    assert (states["first"], states["second"]) == ("up", "disabled")


async def test_file_of_vs_code_is_understood(gateway: Gateway, trial_url: str) -> None:
    assert (await paste(gateway, {"first": {"type": "http", "url": trial_url}}, key="servers")).status == 201


@pytest.mark.parametrize(
    ("entry", "param", "reason"),
    [
        ({"command": "npx", "args": ["-y", "server"]}, "mcpServers.bad.command", "agent-gateway mcp add"),
        (
            {"url": NOWHERE, "headers": {"Authorization": "Bearer ${TOKEN}"}},
            "mcpServers.bad.headers.Authorization",
            "${",
        ),
        ({"url": "${env:URL}"}, "mcpServers.bad.url", "does not expand"),
        ({"type": "http"}, "mcpServers.bad.url", "Field required"),
        ({"url": NOWHERE, "timeout": "soon"}, "mcpServers.bad.timeout", "number"),
        ({"url": NOWHERE, "headers": ["a"]}, "mcpServers.bad.headers", "dictionary"),
        ("http://127.0.0.1:9", "mcpServers.bad", "dictionary"),
    ],
)
async def test_entry_that_cannot_be_used_is_named_and_nothing_is_added(
    gateway: Gateway, db: asyncpg.Connection, entry: Any, param: str, reason: str
) -> None:
    reply = await paste(gateway, {"good": {"url": NOWHERE}, "bad": entry})
    assert (reply.status, reply.body["error"]["param"]) == (422, param)
    assert reason in reply.body["error"]["message"]
    assert await db.fetchval("SELECT count(*) FROM mcp_servers") == 0


async def test_server_that_exists_is_a_conflict_and_nothing_is_added(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await paste(gateway, {"new": {"url": NOWHERE}, "tools": {"url": NOWHERE}})
    assert reply.status == 409
    assert "'tools'" in reply.body["error"]["message"]
    assert await db.fetchval("SELECT count(*) FROM mcp_servers") == 0


@pytest.mark.parametrize("body", [{"mcpServers": {}}, {"mcpServers": []}, {"mcpServers": None}, {"name": "x"}, [], "x"])
async def test_wrong_body_names_its_field_without_internals(gateway: Gateway, body: Any) -> None:
    reply = await gateway.post(PATH, body)
    assert reply.status == 422
    assert "~" not in reply.body["error"]["message"]
    assert reply.body["error"].get("param") in ("mcpServers", "url", None)
