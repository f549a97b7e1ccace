"""Stored API keys: authentication, permissions, limits, and secrets that are never stored."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from pydantic import SecretStr
from sqlalchemy import event
from starlette.datastructures import Headers

import gateway as gateway_package
from gateway.api.security.authentication import FailedLoginAudit, reject_open_gateway
from gateway.config import ConfigError, load_settings
from gateway.domain.errors import NotAuthenticated
from gateway.domain.messages import Budget, BusMessage, KeyLimits
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.call_counter import count_function_calls
from tests.eventually import eventually
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

UNFINISHED_STATUSES = ("running", "waiting")
PACKAGE = str(Path(gateway_package.__file__).parent)


async def wait_for_status(gateway: Gateway, status: int, **options: Any) -> Reply:
    async def get_reply() -> Reply | None:
        reply = await gateway.get("/api/v1/models", **options)
        return reply if reply.status == status else None

    return await eventually(get_reply)


@asynccontextmanager
async def connect_mcp_client(gateway: Gateway, headers: dict[str, str], mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


# --- authentication


async def test_first_key_enables_authentication_on_all_workers(workers: list[Gateway]) -> None:
    first, second = workers
    assert (await second.get("/api/v1/models")).status == 200
    created = (await first.post("/api/v1/keys", {"name": "first key", "role": "admin"})).body
    rejection = await wait_for_status(second, 401)
    assert rejection.body["error"]["code"] == "not_authenticated"
    assert rejection.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"X-API-Key": created["key"]}, {"Authorization": f"Bearer {created['key']}"}):
        assert (await second.get("/api/v1/models", headers=headers)).status == 200
    assert (await second.get("/health")).status == 200


async def test_revoked_key_is_rejected_by_all_workers_and_authentication_stays_enabled(
    workers: list[Gateway],
) -> None:
    first, second = workers
    created = (await first.post("/api/v1/keys", {"role": "admin"})).body
    headers = {"X-API-Key": created["key"]}
    await wait_for_status(second, 200, headers=headers)
    async with first.session.delete(f"{first.base_url}/api/v1/keys/{created['id']}", headers=headers) as deleted:
        assert deleted.status == 204
    for worker in workers:
        await wait_for_status(worker, 401, headers=headers)
        assert (await worker.get("/api/v1/models")).status == 401


@pytest.mark.parametrize("cause", ["revoked", "expired"])
@pytest.mark.parametrize("path", ["/api/v1/chat/stream", "/api/v1/chat", "/mcp"])
async def test_open_request_ends_when_its_key_is_revoked_or_expires(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection, path: str, cause: str
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=9))
    timeouts = replace(TIMEOUTS, key_poll=0.1 if cause == "expired" else 600)
    async with serve_gateway(database_url, simulator, tools_url, timeouts=timeouts) as gateway, asyncio.timeout(30):
        keyring = Keyring(gateway)
        key, other = await keyring.make("ada"), await keyring.make("ada")
        streams = []
        for headers in (key, other):
            if path == "/mcp":
                streams.append(asyncio.create_task(read_notification_stream(gateway, headers)))
            else:
                body = {"messages": [{"role": "user", "content": "forever"}]}
                streams.append(asyncio.create_task(post_and_read(gateway, path, body, headers)))
        await eventually(lambda: len(gateway.state.auth.open_requests._open) == 2)
        if path != "/mcp":
            await simulator.wait_until(lambda s: len(s.requests) == 2)
        prefix = key["X-API-Key"][:12]
        if cause == "expired":
            await db.execute("UPDATE api_keys SET expires_at = now() WHERE prefix = $1", prefix)
        else:
            await gateway.state.keys.revoke(await gateway.state.keys.get_by_prefix(prefix), by="test")
        await asyncio.wait(streams[:1])
        if path != "/mcp":
            await simulator.wait_until(lambda s: s.cancelled_streams == 1)
        assert not streams[1].done()
        streams[1].cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def post_and_read(gateway: Gateway, path: str, body: Any, headers: dict[str, str]) -> None:
    async with gateway.session.post(f"{gateway.base_url}{path}", json=body, headers=headers) as response:
        await response.read()


async def read_notification_stream(gateway: Gateway, headers: dict[str, str]) -> None:
    """Open an MCP session and read its notification stream to the end."""
    url = f"{gateway.base_url}/mcp"
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    accept = {"Accept": "application/json, text/event-stream"} | headers
    async with gateway.session.post(url, json=initialize, headers=accept) as response:
        session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    async with gateway.session.get(url, headers=accept | session) as stream:
        assert stream.status == 200
        await stream.read()


async def test_expired_key_is_rejected(keyring: Keyring) -> None:
    await keyring.make("ada", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await keyring.make("bob", expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert (await keyring.get("ada", "/api/v1/models")).status == 401
    assert (await keyring.get("bob", "/api/v1/models")).status == 200


async def test_only_the_hash_of_a_key_is_stored(keyring: Keyring, db: asyncpg.Connection) -> None:
    created = (await keyring.post("root", "/api/v1/keys", {"name": "laptop"})).body
    secret = created["key"]
    assert secret.startswith(created["prefix"] + "_")
    assert len(secret.removeprefix(created["prefix"] + "_")) == 43  # 256 bits
    row = dict(await db.fetchrow("SELECT * FROM api_keys WHERE prefix = $1", created["prefix"]))
    assert row["hash"] == hashlib.sha256(secret.encode()).hexdigest()
    audit_rows = await db.fetch("SELECT * FROM audit_log")
    assert {"key.create"} == {entry["action"] for entry in audit_rows}
    listing = (await keyring.get("root", "/api/v1/keys")).body
    for text in (str(row), str([dict(entry) for entry in audit_rows]), json.dumps(listing)):
        assert secret.removeprefix(created["prefix"]) not in text


async def test_cached_key_is_authenticated_without_a_query(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    timeouts = replace(TIMEOUTS, key_cache=600)
    async with serve_gateway(database_url, simulator, tools_url, timeouts=timeouts) as gateway:
        keyring = Keyring(gateway)
        await keyring.make("root", role="admin")
        queries: list[str] = []
        engine = gateway.state.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
        for _ in range(50):
            assert (await keyring.get("root", "/v1/models")).status == 200
    key_queries = [query for query in queries if "api_keys" in query]
    assert len(key_queries) <= 3  # whether keys exist, the lookup, and the time of last use


async def test_last_use_is_recorded_at_most_once_per_minute(keyring: Keyring, db: asyncpg.Connection) -> None:
    root = keyring.rows["root"]
    last_use = "SELECT last_used_at FROM api_keys WHERE id = $1"
    assert await db.fetchval(last_use, root.id) is None
    await keyring.get("root", "/v1/models")
    recorded_at = await eventually(lambda: db.fetchval(last_use, root.id))
    await keyring.gateway.state.keys.touch(root.id)  # as another worker would record it
    assert await db.fetchval(last_use, root.id) == recorded_at
    await db.execute("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
    await keyring.gateway.state.keys.touch(root.id)
    assert await db.fetchval(last_use, root.id) > recorded_at


async def test_failed_login_audit_is_limited_per_second_and_source(keyring: Keyring) -> None:
    clock = [100.0]
    audit = FailedLoginAudit(keyring.gateway.state.audit, now=lambda: clock[0])
    assert [audit.should_record("here") for _ in range(3)] == [True, False, False]
    assert [audit.should_record(f"source {n}") for n in range(25)] == [True] * 19 + [False] * 6
    clock[0] += 1
    assert audit.should_record("here")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
async def test_unknown_and_nearly_correct_keys_are_rejected_by_the_same_calls(keyring: Keyring, cached: bool) -> None:
    secret = keyring.secrets["root"]
    last = "A" if secret[-1] != "A" else "B"
    keys = {
        "nearly correct": secret[:-1] + last,
        "entirely different": "x" * len(secret),
        "unknown prefix": "agw_" + "0" * 52,
    }
    common_calls: dict[str, Counter[tuple[str, str]]] = {}
    for _ in range(20):  # background tasks add calls to some rounds
        for name, key in keys.items():
            headers = Headers({"x-api-key": key})
            if not cached:
                keyring.gateway.state.auth.on_keys_changed(BusMessage("keys", BusMessage.NO_TURN))
            with pytest.raises(NotAuthenticated), count_function_calls() as calls:
                await keyring.gateway.state.auth.authenticate_request(headers, "test")
            gateway_calls = Counter({call: number for call, number in calls.items() if call[0].startswith(PACKAGE)})
            common_calls[name] = gateway_calls & common_calls.get(name, gateway_calls)
    first, *others = common_calls.values()
    assert first
    for other in others:
        assert other == first


async def test_failed_logins_are_audited_without_the_secret(keyring: Keyring, db: asyncpg.Connection) -> None:
    for _ in range(40):
        assert (await keyring.gateway.get("/v1/models", headers={"X-API-Key": "agw_12345678_guess"})).status == 401
    count = "SELECT count(*) FROM audit_log WHERE action = 'login.refused'"
    await eventually(lambda: db.fetchval(count))
    rows = await db.fetch("SELECT subject, detail FROM audit_log WHERE action = 'login.refused' ORDER BY id")
    assert rows[0]["subject"] == "source 127.0.0.1"
    assert "agw_12345678" in rows[0]["detail"]
    assert "guess" not in rows[0]["detail"]


@pytest.mark.parametrize(
    ("settings", "stored_keys", "is_rejected"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"api_key": SecretStr("key-for-everyone")}, False, False),
        ({"jwt_secret": SecretStr("s" * 32), "jwt_issuer": "i", "jwt_audience": "a"}, False, False),
        ({"gateway_allow_anonymous": True}, False, False),
        ({"gateway_host": "127.0.0.1"}, False, False),
    ],
)
def test_gateway_on_a_public_address_requires_authentication(
    settings: dict[str, Any], stored_keys: bool, is_rejected: bool
) -> None:
    loaded_settings = load_settings(_env_file=None, **({"gateway_host": "0.0.0.0"} | settings))
    if is_rejected:
        with pytest.raises(ConfigError, match="can be reached from other machines"):
            reject_open_gateway(loaded_settings, stored_keys=stored_keys)
    else:
        reject_open_gateway(loaded_settings, stored_keys=stored_keys)


async def test_gateway_on_a_public_address_rejects_requests_without_stored_keys(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, gateway_host="0.0.0.0") as gateway:
        assert (await gateway.get("/api/v1/models")).status == 401


# --- permissions


async def test_users_manage_their_own_keys_and_admins_all_keys(keyring: Keyring) -> None:
    for owner in ("ada", "bob"):
        await keyring.make(owner)
    own_keys = (await keyring.get("ada", "/api/v1/keys")).body["keys"]
    assert [key["owner"] for key in own_keys] == ["ada"]
    assert len((await keyring.get("root", "/api/v1/keys")).body["keys"]) == 3
    assert await keyring.call("DELETE", "ada", f"/api/v1/keys/{keyring.rows['bob'].id}") == 404
    assert await keyring.call("DELETE", "root", f"/api/v1/keys/{keyring.rows['bob'].id}") == 204
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
    await keyring.make("ada", **permissions)
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
    await keyring.make("ada", limits=KeyLimits(streams=1))
    assert (await keyring.post("ada", "/api/v1/keys", {})).status == 403  # a second key would have its own limit


@pytest.mark.parametrize("expires_at", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
async def test_expiry_outside_the_utc_range_is_rejected(standing: Gateway, expires_at: str) -> None:
    rejection = await standing.post("/api/v1/keys", {"expires_at": expires_at})
    assert (rejection.status, rejection.body["error"]["param"]) == (422, "expires_at")


async def test_stored_keys_above_the_current_maximum_are_shown_unchanged(keyring: Keyring) -> None:
    budget, limits = Budget(tokens_per_day=10**20 - 1), KeyLimits(requests=5_000_000, window_seconds=90_000)
    await keyring.make("lim", budget=budget, limits=limits)
    for owner in ("lim", "root"):
        keys = (await keyring.get(owner, "/api/v1/keys")).body["keys"]
        (listed_key,) = (key for key in keys if key["owner"] == "lim")
        assert listed_key["budget"]["tokens_per_day"] == 10**20 - 1
        assert listed_key["limits"] == {"requests": 5_000_000, "window_seconds": 90_000, "streams": None}
    assert (await keyring.get("lim", "/api/v1/budget")).body["key"]["budget"]["tokens_per_day"] == 10**20 - 1


async def test_created_key_expires_no_later_than_its_creator(keyring: Keyring) -> None:
    await keyring.make("ada", expires_at=datetime.now(UTC) + timedelta(hours=1))
    for body in ({}, {"expires_at": (datetime.now(UTC) + timedelta(days=9)).isoformat()}):
        created = (await keyring.post("ada", "/api/v1/keys", body)).body
        assert datetime.fromisoformat(created["expires_at"]) <= datetime.now(UTC) + timedelta(hours=1)


async def test_viewer_can_read_but_not_start_turns_or_call_tools(keyring: Keyring) -> None:
    await keyring.make("eve", role="viewer")
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
    await keyring.make("eve", role="viewer")
    assert [await keyring.call("TRACE", "eve", path) for path in ("/health", "/v1/models")] == [405, 405]


async def test_scopes_grant_only_their_routes(keyring: Keyring) -> None:
    await keyring.make("ada", scopes=("tools",))
    assert (await keyring.get("ada", "/api/v1/tools")).status == 200
    assert (await keyring.get("ada", "/api/v1/models")).status == 200
    rejection = await keyring.get("ada", "/api/v1/history")
    assert (rejection.status, rejection.body["error"]["code"]) == (403, "forbidden")
    assert (await keyring.chat("ada", "hello")).status == 403
    async with connect_mcp_client(keyring.gateway, keyring.headers("ada")) as client:
        assert "ask_agent" not in {tool.name for tool in (await client.list_tools()).tools}
    await keyring.make("bob", scopes=("chat",))
    async with keyring.gateway.session.post(
        f"{keyring.gateway.base_url}/mcp", json={}, headers=keyring.headers("bob")
    ) as response:
        assert response.status == 403


async def test_tools_outside_the_allow_list_are_unavailable_on_all_routes(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    await keyring.make("ada", tools=("calculator",))
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
    await keyring.make("ada", servers=("other",))
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
    await keyring.make("ada", models=("openai/gpt-oss-20b",))
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
            await keyring.make("ada", models=models)
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
"""Request bodies of all HTTP routes that start turns; `ask_agent` at `/mcp` starts them too."""


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
    headers, simulator = await keyring.make("ada", **options), keyring.gateway.simulator
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
    headers = await keyring.make("ada")
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


async def test_mcp_session_is_rejected_for_another_user(keyring: Keyring) -> None:
    await keyring.make("ada")
    await keyring.make("bob")
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    accept = {"Accept": "application/json, text/event-stream"}
    url = f"{keyring.gateway.base_url}/mcp"
    async with keyring.gateway.session.post(url, json=initialize, headers=accept | keyring.headers("ada")) as response:
        assert response.status == 200
        session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    list_tools = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    for owner, status in (("bob", 404), ("ada", 200)):
        headers = accept | session | keyring.headers(owner)
        async with keyring.gateway.session.post(url, json=list_tools, headers=headers) as response:
            assert response.status == status
