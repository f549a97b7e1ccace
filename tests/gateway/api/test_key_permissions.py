"""Permissions of stored API keys: roles, scopes, allow lists and limits."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from gateway.domain.messages import Budget, KeyLimits
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, Reply, serve_gateway

UNFINISHED_STATUSES = ("running", "waiting")


@asynccontextmanager
async def connect_mcp_client(gateway: Gateway, headers: dict[str, str], mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def test_users_manage_their_own_keys_and_admins_all_keys(keyring: Keyring) -> None:
    for owner in ("ada", "bob"):
        await keyring.create_key(owner)
    own_keys = (await keyring.get("ada", "/api/v1/keys")).body["keys"]
    assert [key["owner"] for key in own_keys] == ["ada"]
    assert len((await keyring.get("root", "/api/v1/keys")).body["keys"]) == 3
    assert await keyring.request_status("DELETE", "ada", f"/api/v1/keys/{keyring.rows['bob'].id}") == 404
    assert await keyring.request_status("DELETE", "root", f"/api/v1/keys/{keyring.rows['bob'].id}") == 204
    assert (await keyring.get("bob", "/api/v1/keys")).status == 401
    created = await keyring.post("ada", "/api/v1/keys", {"name": "laptop"})
    assert (created.status, created.body["owner"], created.body["role"]) == (201, "ada", "user")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 201),
        ({"role": "viewer"}, 201),
        ({"role": "admin"}, 403),
        ({"owner": "bob"}, 403),
        ({"scopes": ["chat"]}, 201),
        ({"scopes": ["admin"]}, 403),
        ({"scopes": ["everything"]}, 422),
        ({"tools": ["calculator"]}, 201),
        ({"tools": ["calc*"]}, 201),
        ({"tools": ["calcium"]}, 201),
        ({"tools": ["c*"]}, 403),
        ({"tools": ["add_task"]}, 403),
        ({"models": ["anything/else"]}, 403),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"unknown": 1}, 422),
    ],
)
async def test_created_key_has_at_most_the_permissions_of_its_creator(
    keyring: Keyring, body: dict[str, Any], status: int
) -> None:
    permissions = {"scopes": ("chat", "keys"), "tools": ("calc*",), "models": ("openai/*",)}
    await keyring.create_key("ada", **permissions)
    created = await keyring.post("ada", "/api/v1/keys", body)
    assert created.status == status, created.body
    if status == 201:
        for name, values in permissions.items():
            assert created.body[name] == body.get(name, list(values))


async def test_key_limits_are_returned_and_a_limited_key_cannot_create_keys(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    for limits, status in (
        ({"requests": 5, "window_seconds": 10, "streams": 2}, 201),
        ({"streams": 1}, 201),
        ({"requests": 0}, 422),
        ({"streams": 0}, 422),
        ({"window_seconds": 0}, 422),
        ({"window_seconds": 100_000}, 422),
        ({"often": 1}, 422),
    ):
        created = await keyring.post("root", "/api/v1/keys", {"limits": limits})
        assert created.status == status, limits
        if status == 201:
            assert created.body["limits"] == {"requests": None, "window_seconds": 60} | limits
    await keyring.create_key("ada", limits=KeyLimits(streams=1))
    assert (await keyring.post("ada", "/api/v1/keys", {})).status == 403  # a second key would have its own limit


@pytest.mark.parametrize("expires_at", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
async def test_expiry_outside_the_utc_range_is_rejected(shared_gateway: Gateway, expires_at: str) -> None:
    rejection = await shared_gateway.post("/api/v1/keys", {"expires_at": expires_at})
    assert (rejection.status, rejection.body["error"]["param"]) == (422, "expires_at")


async def test_stored_keys_above_the_current_maximum_are_shown_unchanged(keyring: Keyring) -> None:
    budget, limits = Budget(tokens_per_day=10**20 - 1), KeyLimits(requests=5_000_000, window_seconds=90_000)
    await keyring.create_key("lim", budget=budget, limits=limits)
    for owner in ("lim", "root"):
        keys = (await keyring.get(owner, "/api/v1/keys")).body["keys"]
        (listed_key,) = (key for key in keys if key["owner"] == "lim")
        assert listed_key["budget"]["tokens_per_day"] == 10**20 - 1
        assert listed_key["limits"] == {"requests": 5_000_000, "window_seconds": 90_000, "streams": None}
    assert (await keyring.get("lim", "/api/v1/budget")).body["key"]["budget"]["tokens_per_day"] == 10**20 - 1


async def test_created_key_expires_no_later_than_its_creator(keyring: Keyring) -> None:
    await keyring.create_key("ada", expires_at=datetime.now(UTC) + timedelta(hours=1))
    for body in ({}, {"expires_at": (datetime.now(UTC) + timedelta(days=9)).isoformat()}):
        created = (await keyring.post("ada", "/api/v1/keys", body)).body
        assert datetime.fromisoformat(created["expires_at"]) <= datetime.now(UTC) + timedelta(hours=1)


async def test_viewer_can_read_but_not_start_turns_or_call_tools(keyring: Keyring) -> None:
    await keyring.create_key("eve", role="viewer")
    for path in ("/api/v1/tools", "/api/v1/history", "/api/v1/conversations", "/v1/models", "/api/v1/keys"):
        assert (await keyring.get("eve", path)).status == 200, path
    chat = await keyring.chat("eve", "hello")
    assert (chat.status, chat.body["error"]["code"]) == (403, "forbidden")
    assert (await keyring.post("eve", "/api/v1/tools/calculator", {"expression": "1+1"})).status == 403
    assert (await keyring.post("eve", "/api/v1/keys", {})).status == 403
    async with connect_mcp_client(keyring.gateway, keyring.headers("eve")) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "calculator" in names
        assert "ask_agent" not in names
        for name in ("calculator", "ask_agent"):
            with pytest.raises(MCPError, match="viewer"):
                await client.call_tool(name, {})


async def test_unknown_method_is_a_405_for_a_viewer(keyring: Keyring) -> None:
    await keyring.create_key("eve", role="viewer")
    assert [await keyring.request_status("TRACE", "eve", path) for path in ("/health", "/v1/models")] == [405, 405]


async def test_scopes_grant_only_their_routes(keyring: Keyring) -> None:
    await keyring.create_key("ada", scopes=("tools",))
    assert (await keyring.get("ada", "/api/v1/tools")).status == 200
    assert (await keyring.get("ada", "/api/v1/models")).status == 200
    rejection = await keyring.get("ada", "/api/v1/history")
    assert (rejection.status, rejection.body["error"]["code"]) == (403, "forbidden")
    assert (await keyring.chat("ada", "hello")).status == 403
    async with connect_mcp_client(keyring.gateway, keyring.headers("ada")) as client:
        assert "ask_agent" not in {tool.name for tool in (await client.list_tools()).tools}
    await keyring.create_key("bob", scopes=("chat",))
    async with keyring.gateway.session.post(
        f"{keyring.gateway.base_url}/mcp", json={}, headers=keyring.headers("bob")
    ) as response:
        assert response.status == 403


async def test_tools_outside_the_allow_list_are_unavailable_on_all_routes(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    await keyring.create_key("ada", tools=("calculator",))
    listed_tools = (await keyring.get("ada", "/api/v1/tools")).body["tools"]
    assert [tool["name"] for tool in listed_tools] == ["calculator"]
    assert (await keyring.post("ada", "/api/v1/tools/calculator", {"expression": "5*9"})).status == 200
    direct_call = await keyring.post("ada", "/api/v1/tools/add_task", {"title": "sneak"})
    assert (direct_call.status, direct_call.body["error"]["code"]) == (404, "tool_not_found")
    async with connect_mcp_client(keyring.gateway, keyring.headers("ada")) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"calculator", "ask_agent"}
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("add_task", {"title": "sneak"})
        await client.call_tool("ask_agent", {"prompt": "Add a task to sneak"})
    turn = (await keyring.chat("ada", "Add a task to sneak", tools=["add_task", "calculator"])).body
    assert [call["outcome"] for call in turn.get("tool_calls", []) if call["tool"] == "add_task"] in ([], ["error"])
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    caller = json.loads(await db.fetchval("SELECT caller FROM turns ORDER BY id DESC LIMIT 1"))
    expected_caller = {"user": "ada", "key": keyring.rows["ada"].prefix, "tools": ["calculator"]}
    assert caller == expected_caller | {"headers": {}}


async def test_servers_outside_the_allow_list_are_hidden(keyring: Keyring) -> None:
    await keyring.create_key("ada", servers=("other",))
    for path, field in (
        ("/api/v1/tools", "tools"),
        ("/api/v1/tools", "servers"),
        ("/api/v1/mcp/servers", "servers"),
        ("/api/v1/mcp/resources", "templates"),
        ("/api/v1/mcp/prompts", "prompts"),
    ):
        assert (await keyring.get("ada", path)).body[field] == [], path
        assert (await keyring.get("root", path)).body[field] != [], path
    assert (await keyring.get("ada", "/api/v1/mcp/resources/read?uri=tasks://pending")).status == 404
    assert (await keyring.get("ada", "/api/v1/mcp/resources/read?uri=tasks://pending&server=tools")).status == 404
    assert (await keyring.post("ada", "/api/v1/mcp/prompts/plan_day", {})).status == 404


async def test_models_outside_the_allow_list_are_rejected_by_name(keyring: Keyring) -> None:
    await keyring.create_key("ada", models=("openai/gpt-oss-20b",))
    assert (await keyring.chat("ada", "hello", model="openai/gpt-oss-20b")).status == 200
    # This model is retired: openai/gpt-oss-20b replaces it.
    assert (await keyring.chat("ada", "hello", model="llama-3.1-8b-instant")).status == 200
    rejection = await keyring.chat("ada", "hello", model="openai/gpt-oss-120b")
    assert (rejection.status, rejection.body["error"]["param"]) == (403, "model")
    assert (await keyring.chat("ada", "hello", model="llama-3.3-70b-versatile")).status == 403
    listed_models = (await keyring.get("ada", "/v1/models")).body["data"]
    assert [model["id"] for model in listed_models] == ["openai/gpt-oss-20b"]


async def test_models_outside_the_allow_list_are_not_used_as_fallbacks(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    options = {"model_fallbacks": ("openai/gpt-oss-120b", "qwen/qwen3.8-27b"), "model_retries": 0}
    async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
        keyring = Keyring(gateway)
        for models, status in ((("openai/gpt-oss-20b", "qwen/*"), 200), (("openai/gpt-oss-20b",), 503)):
            await keyring.create_key("ada", models=models)
            simulator.requests.clear()
            simulator.faults.add_faults(Fault(kind="status", status=503, match="openai/gpt-oss-20b"))
            assert (await keyring.chat("ada", "hello", model="openai/gpt-oss-20b")).status == status
            assert "openai/gpt-oss-120b" not in {request["model"] for request in simulator.requests}


TURN_ROUTES = {
    "/api/v1/chat": {"messages": [{"role": "user", "content": "hello"}]},
    "/api/v1/chat/stream": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/openai/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "stream": True},
    "/v1/responses": {"input": "hello"},
    "/stream": {"prompt": "hello"},
    "/api/chat/stream": {"user_prompt": "hello"},
    "/api/ada/chat": {"message": "hello"},
}
"""Request bodies of all HTTP routes that start turns.

`ask_agent` at `/mcp` starts them too.
"""


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"role": "viewer"}, 403),
        ({"scopes": ("history", "tools")}, 403),
        ({"models": ("openai/gpt-oss-20b",)}, 403),
        ({"budget": Budget(tokens_per_day=0)}, 402),
        ({"limits": KeyLimits(requests=1)}, 429),
        ({"tools": ("calculator",)}, 200),
        ({"servers": ("other",)}, 200),
    ],
    ids=str,
)
async def test_key_restrictions_hold_on_all_turn_routes(keyring: Keyring, options: dict[str, Any], status: int) -> None:
    headers, simulator = await keyring.create_key("ada", **options), keyring.gateway.simulator
    await keyring.get("ada", "/api/v1/models")
    for path, body in TURN_ROUTES.items():
        async with keyring.gateway.session.post(
            f"{keyring.gateway.base_url}{path}", json=body, headers=headers
        ) as reply:
            assert (path, reply.status) == (path, status)
            await reply.read()
    async with AsyncExitStack() as stack:
        if status == 429:
            assert (await keyring.post("ada", "/mcp", {})).status == 429
        else:
            client = await stack.enter_async_context(connect_mcp_client(keyring.gateway, headers))
            if options.get("role") == "viewer" or "scopes" in options:
                with pytest.raises(MCPError):
                    await client.call_tool("ask_agent", {"prompt": "hello"})
            else:
                assert (await client.call_tool("ask_agent", {"prompt": "hello"})).is_error is (status != 200)
    offered_tools = [{tool["function"]["name"] for tool in request.get("tools", ())} for request in simulator.requests]
    assert offered_tools == ([set(options.get("tools", ()))] * (len(TURN_ROUTES) + 1) if status == 200 else [])


async def test_turn_resumed_by_another_worker_keeps_the_allow_lists_of_its_caller(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first, second = workers
    keyring = Keyring(first)
    headers = await keyring.create_key("ada")
    waiting_turn = (await keyring.chat("ada", "Add a task to rest", approval="always")).body
    # As if the key had this list from the start.
    await db.execute('UPDATE turns SET caller = caller || \'{"tools": ["calculator"]}\'')
    answer = {"input_id": waiting_turn["inputs"][0]["input_id"], "action": "accept"}
    await second.post(f"/api/v1/turns/{waiting_turn['turn_id']}/input", answer, headers=headers)

    async def get_finished_turn() -> Reply | None:
        turn = await second.get(f"/api/v1/turns/{waiting_turn['turn_id']}", headers=headers)
        return turn if turn.body["status"] not in UNFINISHED_STATUSES else None

    turn = await eventually(get_finished_turn)
    assert [call["outcome"] for call in turn.body["tool_calls"]] == ["denied"]
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def test_key_for_some_tools_approves_no_call_of_another_key(keyring: Keyring) -> None:
    """An approval runs the tool, even with other arguments."""
    gateway = keyring.gateway
    wide, narrow = await keyring.create_key("ada"), await keyring.create_key("ada", tools=("calculator",))
    body = {"messages": [{"role": "user", "content": "Add a task to rest"}], "approval": "always"}
    turn = (await gateway.post("/api/v1/chat", body, headers=wide)).body
    [question] = turn["inputs"]
    answer = {"input_id": question["input_id"], "action": "accept", "content": {"arguments": {"title": "hers"}}}
    path = f"/api/v1/turns/{turn['turn_id']}/input"
    approval = {
        "type": "mcp_approval_response",
        "approval_request_id": f"mcpr_{UUID(question['input_id']).hex}_{UUID(turn['turn_id']).hex}_0",
        "approve": True,
    }
    assert (await gateway.post(path, answer, headers=narrow)).status == 404
    assert (await gateway.post("/v1/responses", {"input": [approval]}, headers=narrow)).status == 404
    own = {"messages": [{"role": "user", "content": 'call calculator {"expression": "1+1"}'}], "approval": "always"}
    own_turn = (await gateway.post("/api/v1/chat", own, headers=narrow)).body
    [own_question] = own_turn["inputs"]
    own_answer = {"input_id": own_question["input_id"], "action": "accept"}
    own_path = f"/api/v1/turns/{own_turn['turn_id']}/input"
    assert (await gateway.post(own_path, own_answer, headers=narrow)).status == 200
    assert (await gateway.post(path, {**answer, "action": "decline", "content": None}, headers=wide)).status == 200
