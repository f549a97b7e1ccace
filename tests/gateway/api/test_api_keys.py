"""Stored keys: who gets in with them, what they may do, and what is never kept or shown of them."""

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
from tests.counting import counted
from tests.eventually import eventually
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

OPEN = ("running", "waiting")
PACKAGE = str(Path(gateway_package.__file__).parent)


async def until_status(gateway: Gateway, status: int, **options: Any) -> Reply:
    async def reply() -> Reply | None:
        got = await gateway.get("/api/v1/models", **options)
        return got if got.status == status else None

    return await eventually(reply)


@asynccontextmanager
async def host(gateway: Gateway, headers: dict[str, str], mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


# --- who gets in


async def test_first_key_enables_authentication_on_all_workers(workers: list[Gateway]) -> None:
    first, second = workers
    assert (await second.get("/api/v1/models")).status == 200
    made = (await first.post("/api/v1/keys", {"name": "the first", "role": "admin"})).body
    refused = await until_status(second, 401)
    assert refused.body["error"]["code"] == "not_authenticated"
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"X-API-Key": made["key"]}, {"Authorization": f"Bearer {made['key']}"}):
        assert (await second.get("/api/v1/models", headers=headers)).status == 200
    assert (await second.get("/health")).status == 200


async def test_revoked_key_is_rejected_by_all_workers_and_authentication_stays_enabled(
    workers: list[Gateway],
) -> None:
    first, second = workers
    made = (await first.post("/api/v1/keys", {"role": "admin"})).body
    headers = {"X-API-Key": made["key"]}
    await until_status(second, 200, headers=headers)
    async with first.session.delete(f"{first.base_url}/api/v1/keys/{made['id']}", headers=headers) as gone:
        assert gone.status == 204
    for worker in workers:
        await until_status(worker, 401, headers=headers)
        assert (await worker.get("/api/v1/models")).status == 401


@pytest.mark.parametrize("how", ["revoked", "expired"])
@pytest.mark.parametrize("path", ["/api/v1/chat/stream", "/api/v1/chat", "/mcp"])
async def test_open_request_ends_when_its_key_is_revoked_or_expires(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection, path: str, how: str
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=9))
    timeouts = replace(TIMEOUTS, key_poll=0.1 if how == "expired" else 600)
    async with serve_gateway(database_url, simulator, tools_url, timeouts=timeouts) as gateway, asyncio.timeout(30):
        ring = Keyring(gateway)
        key, other = await ring.make("ada"), await ring.make("ada")
        streams = []
        for headers in (key, other):
            if path == "/mcp":
                streams.append(asyncio.create_task(listened(gateway, headers)))
            else:
                body = {"messages": [{"role": "user", "content": "forever"}]}
                streams.append(asyncio.create_task(read(gateway, path, body, headers)))
        await eventually(lambda: len(gateway.state.auth.open_requests._open) == 2)
        if path != "/mcp":
            await simulator.wait_until(lambda s: len(s.requests) == 2)
        prefix = key["X-API-Key"][:12]
        if how == "expired":
            await db.execute("UPDATE api_keys SET expires_at = now() WHERE prefix = $1", prefix)
        else:
            await gateway.state.keys.revoke(await gateway.state.keys.get_by_prefix(prefix), by="test")
        await asyncio.wait(streams[:1])
        if path != "/mcp":
            await simulator.wait_until(lambda s: s.cancelled_streams == 1)
        assert not streams[1].done()
        streams[1].cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def read(gateway: Gateway, path: str, body: Any, headers: dict[str, str]) -> None:
    async with gateway.session.post(f"{gateway.base_url}{path}", json=body, headers=headers) as response:
        await response.read()


async def listened(gateway: Gateway, headers: dict[str, str]) -> None:
    """A host's stream for notifications, until it ends."""
    url = f"{gateway.base_url}/mcp"
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip
    accept = {"Accept": "application/json, text/event-stream"} | headers
    async with gateway.session.post(url, json=hello, headers=accept) as begun:
        session = {"Mcp-Session-Id": begun.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    async with gateway.session.get(url, headers=accept | session) as stream:
        assert stream.status == 200
        await stream.read()


async def test_expired_key_is_rejected(locked: Keyring) -> None:
    await locked.make("ada", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await locked.make("bob", expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert (await locked.get("ada", "/api/v1/models")).status == 401
    assert (await locked.get("bob", "/api/v1/models")).status == 200


async def test_only_the_hash_of_a_key_is_stored(locked: Keyring, db: asyncpg.Connection) -> None:
    made = (await locked.post("root", "/api/v1/keys", {"name": "laptop"})).body
    secret = made["key"]
    assert secret.startswith(made["prefix"] + "_")
    assert len(secret.removeprefix(made["prefix"] + "_")) == 43  # 256 bits
    row = dict(await db.fetchrow("SELECT * FROM api_keys WHERE prefix = $1", made["prefix"]))
    assert row["hash"] == hashlib.sha256(secret.encode()).hexdigest()
    audited = await db.fetch("SELECT * FROM audit_log")
    assert {"key.create"} == {entry["action"] for entry in audited}
    listed = (await locked.get("root", "/api/v1/keys")).body
    for told in (str(row), str([dict(entry) for entry in audited]), json.dumps(listed)):
        assert secret.removeprefix(made["prefix"]) not in told


async def test_cached_key_is_authenticated_without_a_query(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    timeouts = replace(TIMEOUTS, key_cache=600)
    async with serve_gateway(database_url, simulator, tools_url, timeouts=timeouts) as gateway:
        ring = Keyring(gateway)
        await ring.make("root", role="admin")
        queries: list[str] = []
        engine = gateway.state.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
        for _ in range(50):
            assert (await ring.get("root", "/v1/models")).status == 200
    of_keys = [query for query in queries if "api_keys" in query]
    assert len(of_keys) <= 3  # whether there are any; which one it is; its use is noted


async def test_last_use_is_recorded_at_most_once_per_minute(locked: Keyring, db: asyncpg.Connection) -> None:
    root = locked.rows["root"]
    last_use = "SELECT last_used_at FROM api_keys WHERE id = $1"
    assert await db.fetchval(last_use, root.id) is None
    await locked.get("root", "/v1/models")
    noted = await eventually(lambda: db.fetchval(last_use, root.id))
    await locked.gateway.state.keys.touch(root.id)  # as another worker would say
    assert await db.fetchval(last_use, root.id) == noted
    await db.execute("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
    await locked.gateway.state.keys.touch(root.id)
    assert await db.fetchval(last_use, root.id) > noted


async def test_failed_login_audit_is_limited_per_second_and_source(locked: Keyring) -> None:
    clock = [100.0]
    audit = FailedLoginAudit(locked.gateway.state.audit, now=lambda: clock[0])
    assert [audit.should_record("here") for _ in range(3)] == [True, False, False]
    assert [audit.should_record(f"source {n}") for n in range(25)] == [True] * 19 + [False] * 6
    clock[0] += 1
    assert audit.should_record("here")


@pytest.mark.parametrize("remembered", [True, False], ids=["remembered", "looked for"])
async def test_unknown_and_nearly_correct_keys_are_rejected_by_the_same_calls(
    locked: Keyring, remembered: bool
) -> None:
    secret = locked.secrets["root"]
    last = "A" if secret[-1] != "A" else "B"
    keys = {
        "nearly right": secret[:-1] + last,
        "wrong from the start": "x" * len(secret),
        "of nobody": "agw_" + "0" * 52,
    }
    fewest: dict[str, Counter[tuple[str, str]]] = {}
    for _ in range(20):  # what else runs in this process adds calls, to some rounds
        for name, key in keys.items():
            headers = Headers({"x-api-key": key})
            if not remembered:
                locked.gateway.state.auth.on_keys_changed(BusMessage("keys", BusMessage.NO_TURN))
            with pytest.raises(NotAuthenticated), counted() as calls:
                await locked.gateway.state.auth.authenticate_request(headers, "test")
            own = Counter({call: number for call, number in calls.items() if call[0].startswith(PACKAGE)})
            fewest[name] = own & fewest.get(name, own)
    first, *others = fewest.values()
    assert first
    for other in others:
        assert other == first


async def test_failed_logins_are_audited_without_the_secret(locked: Keyring, db: asyncpg.Connection) -> None:
    for _ in range(40):
        assert (await locked.gateway.get("/v1/models", headers={"X-API-Key": "agw_12345678_guess"})).status == 401
    count = "SELECT count(*) FROM audit_log WHERE action = 'login.refused'"
    await eventually(lambda: db.fetchval(count))
    rows = await db.fetch("SELECT subject, detail FROM audit_log WHERE action = 'login.refused' ORDER BY id")
    assert rows[0]["subject"] == "source 127.0.0.1"
    assert "agw_12345678" in rows[0]["detail"]
    assert "guess" not in rows[0]["detail"]


@pytest.mark.parametrize(
    ("settings", "stored_keys", "refused"),
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
    settings: dict[str, Any], stored_keys: bool, refused: bool
) -> None:
    made = load_settings(_env_file=None, **({"gateway_host": "0.0.0.0"} | settings))
    if refused:
        with pytest.raises(ConfigError, match="can be reached from other machines"):
            reject_open_gateway(made, stored_keys=stored_keys)
    else:
        reject_open_gateway(made, stored_keys=stored_keys)


async def test_gateway_on_a_public_address_rejects_requests_without_stored_keys(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, gateway_host="0.0.0.0") as gateway:
        assert (await gateway.get("/api/v1/models")).status == 401


# --- what a key may do


async def test_users_manage_their_own_keys_and_admins_all_keys(locked: Keyring) -> None:
    for owner in ("ada", "bob"):
        await locked.make(owner)
    own = (await locked.get("ada", "/api/v1/keys")).body["keys"]
    assert [key["owner"] for key in own] == ["ada"]
    assert len((await locked.get("root", "/api/v1/keys")).body["keys"]) == 3
    assert await locked.call("DELETE", "ada", f"/api/v1/keys/{locked.rows['bob'].id}") == 404
    assert await locked.call("DELETE", "root", f"/api/v1/keys/{locked.rows['bob'].id}") == 204
    assert (await locked.get("bob", "/api/v1/keys")).status == 401
    mine = await locked.post("ada", "/api/v1/keys", {"name": "of my own"})
    assert (mine.status, mine.body["owner"], mine.body["role"]) == (201, "ada", "user")


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
    locked: Keyring, body: dict[str, Any], status: int
) -> None:
    own = {"scopes": ("chat", "keys"), "tools": ("calc*",), "models": ("openai/*",)}
    await locked.make("ada", **own)
    made = await locked.post("ada", "/api/v1/keys", body)
    assert made.status == status, made.body
    if status == 201:
        for name, values in own.items():
            assert made.body[name] == body.get(name, list(values))


async def test_key_limits_are_returned_and_a_limited_key_cannot_create_keys(
    locked: Keyring, db: asyncpg.Connection
) -> None:
    for limits, status in (
        ({"requests": 5, "window_seconds": 10, "streams": 2}, 201), ({"streams": 1}, 201), ({"requests": 0}, 422),
        ({"streams": 0}, 422), ({"window_seconds": 0}, 422), ({"window_seconds": 100_000}, 422), ({"often": 1}, 422),
    ):  # fmt: skip
        made = await locked.post("root", "/api/v1/keys", {"limits": limits})
        assert made.status == status, limits
        if status == 201:
            assert made.body["limits"] == {"requests": None, "window_seconds": 60} | limits
    await locked.make("ada", limits=KeyLimits(streams=1))
    assert (await locked.post("ada", "/api/v1/keys", {})).status == 403  # it would be a second allowance


@pytest.mark.parametrize("expires_at", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
async def test_expiry_outside_the_utc_range_is_rejected(standing: Gateway, expires_at: str) -> None:
    refused = await standing.post("/api/v1/keys", {"expires_at": expires_at})
    assert (refused.status, refused.body["error"]["param"]) == (422, "expires_at")


async def test_stored_keys_above_the_current_maximum_are_shown_unchanged(locked: Keyring) -> None:
    budget, limits = Budget(tokens_per_day=10**20 - 1), KeyLimits(requests=5_000_000, window_seconds=90_000)
    await locked.make("lim", budget=budget, limits=limits)
    for owner in ("lim", "root"):
        keys = (await locked.get(owner, "/api/v1/keys")).body["keys"]
        (shown,) = (key for key in keys if key["owner"] == "lim")
        assert shown["budget"]["tokens_per_day"] == 10**20 - 1
        assert shown["limits"] == {"requests": 5_000_000, "window_seconds": 90_000, "streams": None}
    assert (await locked.get("lim", "/api/v1/budget")).body["key"]["budget"]["tokens_per_day"] == 10**20 - 1


async def test_created_key_expires_no_later_than_its_creator(locked: Keyring) -> None:
    await locked.make("ada", expires_at=datetime.now(UTC) + timedelta(hours=1))
    for body in ({}, {"expires_at": (datetime.now(UTC) + timedelta(days=9)).isoformat()}):
        made = (await locked.post("ada", "/api/v1/keys", body)).body
        assert datetime.fromisoformat(made["expires_at"]) <= datetime.now(UTC) + timedelta(hours=1)


async def test_viewer_can_read_but_not_start_turns_or_call_tools(locked: Keyring) -> None:
    await locked.make("eve", role="viewer")
    for path in ("/api/v1/tools", "/api/v1/history", "/api/v1/conversations", "/v1/models", "/api/v1/keys"):
        assert (await locked.get("eve", path)).status == 200, path
    chat = await locked.chat("eve", "hello")
    assert (chat.status, chat.body["error"]["code"]) == (403, "forbidden")
    assert (await locked.post("eve", "/api/v1/tools/calculator", {"expression": "1+1"})).status == 403
    assert (await locked.post("eve", "/api/v1/keys", {})).status == 403
    async with host(locked.gateway, locked.headers("eve")) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "calculator" in names
        assert "ask_agent" not in names
        for name in ("calculator", "ask_agent"):
            with pytest.raises(MCPError, match="viewer"):
                await client.call_tool(name, {})


async def test_unknown_method_is_a_405_for_a_viewer(locked: Keyring) -> None:
    await locked.make("eve", role="viewer")
    assert [await locked.call("TRACE", "eve", path) for path in ("/health", "/v1/models")] == [405, 405]


async def test_scopes_grant_only_their_routes(locked: Keyring) -> None:
    await locked.make("ada", scopes=("tools",))
    assert (await locked.get("ada", "/api/v1/tools")).status == 200
    assert (await locked.get("ada", "/api/v1/models")).status == 200
    refused = await locked.get("ada", "/api/v1/history")
    assert (refused.status, refused.body["error"]["code"]) == (403, "forbidden")
    assert (await locked.chat("ada", "hello")).status == 403
    async with host(locked.gateway, locked.headers("ada")) as client:
        assert "ask_agent" not in {tool.name for tool in (await client.list_tools()).tools}
    await locked.make("bob", scopes=("chat",))
    async with locked.gateway.session.post(
        f"{locked.gateway.base_url}/mcp", json={}, headers=locked.headers("bob")
    ) as response:
        assert response.status == 403


async def test_tools_outside_the_allow_list_are_unavailable_on_all_routes(
    locked: Keyring, db: asyncpg.Connection
) -> None:
    await locked.make("ada", tools=("calculator",))
    listed = (await locked.get("ada", "/api/v1/tools")).body["tools"]
    assert [tool["name"] for tool in listed] == ["calculator"]
    assert (await locked.post("ada", "/api/v1/tools/calculator", {"expression": "5*9"})).status == 200
    direct = await locked.post("ada", "/api/v1/tools/add_task", {"title": "sneak"})
    assert (direct.status, direct.body["error"]["code"]) == (404, "tool_not_found")
    async with host(locked.gateway, locked.headers("ada")) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"calculator", "ask_agent"}
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("add_task", {"title": "sneak"})
        await client.call_tool("ask_agent", {"prompt": "Add a task to sneak"})
    turn = (await locked.chat("ada", "Add a task to sneak", tools=["add_task", "calculator"])).body
    assert [call["outcome"] for call in turn.get("tool_calls", []) if call["tool"] == "add_task"] in ([], ["error"])
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    caller = json.loads(await db.fetchval("SELECT caller FROM turns ORDER BY id DESC LIMIT 1"))
    shown = {"user": "ada", "key": locked.rows["ada"].prefix, "tools": ["calculator"]}
    assert caller == shown | {"headers": {}}


async def test_servers_outside_the_allow_list_are_hidden(locked: Keyring) -> None:
    await locked.make("ada", servers=("other",))
    for path, field in (("/api/v1/tools", "tools"), ("/api/v1/tools", "servers"), ("/api/v1/mcp/servers", "servers"),
                        ("/api/v1/mcp/resources", "templates"), ("/api/v1/mcp/prompts", "prompts")):  # fmt: skip
        assert (await locked.get("ada", path)).body[field] == [], path
        assert (await locked.get("root", path)).body[field] != [], path
    assert (await locked.get("ada", "/api/v1/mcp/resources/read?uri=tasks://pending")).status == 404
    assert (await locked.get("ada", "/api/v1/mcp/resources/read?uri=tasks://pending&server=tools")).status == 404
    assert (await locked.post("ada", "/api/v1/mcp/prompts/plan_day", {})).status == 404


async def test_models_outside_the_allow_list_are_rejected_by_name(locked: Keyring) -> None:
    await locked.make("ada", models=("openai/gpt-oss-20b",))
    assert (await locked.chat("ada", "hello", model="openai/gpt-oss-20b")).status == 200
    assert (await locked.chat("ada", "hello", model="llama-3.1-8b-instant")).status == 200  # answered by that one
    refused = await locked.chat("ada", "hello", model="openai/gpt-oss-120b")
    assert (refused.status, refused.body["error"]["param"]) == (403, "model")
    assert (await locked.chat("ada", "hello", model="llama-3.3-70b-versatile")).status == 403
    listed = (await locked.get("ada", "/v1/models")).body["data"]
    assert [model["id"] for model in listed] == ["openai/gpt-oss-20b"]


async def test_models_outside_the_allow_list_are_not_used_as_fallbacks(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    options = {"model_fallbacks": ("openai/gpt-oss-120b", "qwen/qwen3.8-27b"), "model_retries": 0}
    async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
        ring = Keyring(gateway)
        for models, answers in ((("openai/gpt-oss-20b", "qwen/*"), 200), (("openai/gpt-oss-20b",), 503)):
            await ring.make("ada", models=models)
            simulator.requests.clear()
            simulator.faults.add_faults(Fault(kind="status", status=503, match="openai/gpt-oss-20b"))
            assert (await ring.chat("ada", "hello", model="openai/gpt-oss-20b")).status == answers
            assert "openai/gpt-oss-120b" not in {request["model"] for request in simulator.requests}


FACES = {
    "/api/v1/chat": {"messages": [{"role": "user", "content": "hello"}]},
    "/api/v1/chat/stream": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/openai/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "stream": True},
    "/v1/responses": {"input": "hello"},
    "/stream": {"prompt": "hello"},
    "/api/chat/stream": {"user_prompt": "hello"},
    "/api/ada/chat": {"message": "hello"},
}
"""Every way to begin a turn over HTTP; `ask_agent` at `/mcp` is another."""


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
async def test_key_restrictions_hold_on_all_turn_routes(locked: Keyring, options: dict[str, Any], status: int) -> None:
    headers, simulator = await locked.make("ada", **options), locked.gateway.simulator
    await locked.get("ada", "/api/v1/models")
    for path, body in FACES.items():
        async with locked.gateway.session.post(f"{locked.gateway.base_url}{path}", json=body, headers=headers) as reply:
            assert (path, reply.status) == (path, status)
            await reply.read()
    async with AsyncExitStack() as stack:
        if status == 429:
            assert (await locked.post("ada", "/mcp", {})).status == 429
        else:
            client = await stack.enter_async_context(host(locked.gateway, headers))
            if options.get("role") == "viewer" or "scopes" in options:
                with pytest.raises(MCPError):
                    await client.call_tool("ask_agent", {"prompt": "hello"})
            else:
                assert (await client.call_tool("ask_agent", {"prompt": "hello"})).is_error is (status != 200)
    offered = [{tool["function"]["name"] for tool in asked.get("tools", ())} for asked in simulator.requests]
    assert offered == ([set(options.get("tools", ()))] * (len(FACES) + 1) if status == 200 else [])


async def test_turn_resumed_by_another_worker_keeps_the_allow_lists_of_its_caller(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first, second = workers
    ring = Keyring(first)
    headers = await ring.make("ada")
    asked = (await ring.chat("ada", "Add a task to rest", approval="always")).body
    await db.execute('UPDATE turns SET caller = caller || \'{"tools": ["calculator"]}\'')  # as if it had been so
    answer = {"input_id": asked["inputs"][0]["input_id"], "action": "accept"}
    await second.post(f"/api/v1/turns/{asked['turn_id']}/input", answer, headers=headers)

    async def ended() -> Reply | None:
        turn = await second.get(f"/api/v1/turns/{asked['turn_id']}", headers=headers)
        return turn if turn.body["status"] not in OPEN else None

    turn = await eventually(ended)
    assert [call["outcome"] for call in turn.body["tool_calls"]] == ["denied"]
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def test_mcp_session_is_rejected_for_another_user(locked: Keyring) -> None:
    await locked.make("ada")
    await locked.make("bob")
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip
    accept = {"Accept": "application/json, text/event-stream"}
    url = f"{locked.gateway.base_url}/mcp"
    async with locked.gateway.session.post(url, json=hello, headers=accept | locked.headers("ada")) as begun:
        assert begun.status == 200
        session = {"Mcp-Session-Id": begun.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    for owner, status in (("bob", 404), ("ada", 200)):
        headers = accept | session | locked.headers(owner)
        async with locked.gateway.session.post(url, json=ask, headers=headers) as response:
            assert response.status == status
