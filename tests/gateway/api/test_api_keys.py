"""Stored API keys: authentication, revocation, expiry, and secrets that are never stored."""

import asyncio
import hashlib
import io
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import event
from starlette.datastructures import Headers

import gateway as gateway_package
from gateway.api.security.authentication import FailedLoginAudit, reject_open_gateway
from gateway.config import ConfigError, load_settings
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import NotAuthenticated
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.call_counter import count_function_calls
from tests.eventually import eventually
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

PACKAGE = str(Path(gateway_package.__file__).parent)


async def wait_for_status(gateway: Gateway, status: int, **options: Any) -> Reply:
    async def get_reply() -> Reply | None:
        reply = await gateway.get("/api/v1/models", **options)
        return reply if reply.status == status else None

    return await eventually(get_reply)


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
        key, other_key = await keyring.create_key("ada"), await keyring.create_key("ada")
        streams = []
        for headers in (key, other_key):
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
            await gateway.state.keys.revoke_key(await gateway.state.keys.get_by_prefix(prefix), by="test")
        await asyncio.wait(streams[:1])
        if path != "/mcp":
            await simulator.wait_until(lambda s: s.cancelled_streams == 1)
        assert not streams[1].done()
        streams[1].cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def test_log_line_of_a_revocation_names_no_earlier_request(
    keyring: Keyring, simulator: Simulator, log_text: io.StringIO
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1))
    gateway, key = keyring.gateway, await keyring.create_key("ada")
    body = {"messages": [{"role": "user", "content": "forever"}]}
    stream = asyncio.create_task(
        post_and_read(gateway, "/api/v1/chat/stream", body, key | {"X-Request-Id": "first-request"})
    )
    await simulator.wait_until(lambda s: len(s.requests) == 1)
    prefix = key["X-API-Key"][:12]
    await gateway.state.keys.revoke_key(await gateway.state.keys.get_by_prefix(prefix), by="test")
    await asyncio.wait([stream])
    await asyncio.gather(stream, return_exceptions=True)
    await eventually(lambda: "first-request" in log_text.getvalue())  # the line of the request follows its response
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    [cancelled] = [line for line in lines if line["event"] == "request_cancelled"]
    assert cancelled["reason"] == "key_revoked_or_expired"
    assert "request_id" not in cancelled
    assert "first-request" in [line.get("request_id") for line in lines]


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
    await keyring.create_key("ada", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await keyring.create_key("bob", expires_at=datetime.now(UTC) + timedelta(hours=1))
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
        await keyring.create_key("root", role="admin")
        queries: list[str] = []
        engine = gateway.state.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
        for _ in range(50):
            assert (await keyring.get("root", "/v1/models")).status == 200
    key_queries = [query for query in queries if "api_keys" in query]
    # Whether keys exist, the lookup, and the time of last use: again if the bus announces the new key late.
    assert len(key_queries) < 10


async def test_last_use_is_recorded_at_most_once_per_minute(keyring: Keyring, db: asyncpg.Connection) -> None:
    root = keyring.rows["root"]
    last_use = "SELECT last_used_at FROM api_keys WHERE id = $1"
    assert await db.fetchval(last_use, root.id) is None
    await keyring.get("root", "/v1/models")
    recorded_at = await eventually(lambda: db.fetchval(last_use, root.id))
    await keyring.gateway.state.keys.record_use(root.id)  # as another worker would record it
    assert await db.fetchval(last_use, root.id) == recorded_at
    await db.execute("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
    await keyring.gateway.state.keys.record_use(root.id)
    assert await db.fetchval(last_use, root.id) > recorded_at


async def test_failed_login_audit_is_limited_per_second_and_source(keyring: Keyring) -> None:
    clock = [100.0]
    audit = FailedLoginAudit(keyring.gateway.state.audit, now=lambda: clock[0])
    assert [audit.should_record("here") for _ in range(3)] == [True, False, False]
    assert [audit.should_record(f"source {n}") for n in range(25)] == [True] * 19 + [False] * 6
    clock[0] += 1
    assert audit.should_record("here")


async def test_rows_of_failed_logins_have_a_budget(keyring: Keyring) -> None:
    """Count the rows of a day, with a new source each second."""
    clock = [0.0]
    audit = FailedLoginAudit(keyring.gateway.state.audit, now=lambda: clock[0])
    rows = 0
    for second in range(86_400):
        clock[0] = float(second)
        rows += audit.should_record(f"source {second}")
    assert 60 + 287 <= rows <= 60 + 288


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
async def test_unknown_and_nearly_correct_keys_are_rejected_by_the_same_calls(keyring: Keyring, cached: bool) -> None:
    secret = keyring.secrets["root"]
    other_character = "A" if secret[-1] != "A" else "B"
    keys = {
        "nearly correct": secret[:-1] + other_character,
        "entirely different": "x" * len(secret),
        "unknown prefix": "agw_" + "0" * 52,
    }
    common_calls: dict[str, Counter[tuple[str, str]]] = {}
    for _ in range(20):  # background tasks add calls to some rounds
        for name, key in keys.items():
            headers = Headers({"x-api-key": key})
            if not cached:
                keyring.gateway.state.auth.on_keys_changed(BusMessage(BusKind.KEYS_CHANGED, BusMessage.NO_TURN))
            with pytest.raises(NotAuthenticated), count_function_calls() as calls:
                await keyring.gateway.state.auth.authenticate_request(headers, "test")
            gateway_calls = Counter({call: number for call, number in calls.items() if call[0].startswith(PACKAGE)})
            common_calls[name] = gateway_calls & common_calls.get(name, gateway_calls)
    first, *others = common_calls.values()
    assert first
    for other in others:
        assert other == first


async def test_failed_logins_are_audited_once_per_second_without_the_secret(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    clock, auth = [100.0], keyring.gateway.state.auth
    auth._failed_logins = FailedLoginAudit(keyring.gateway.state.audit, now=lambda: clock[0])
    for attempts in (40, 1):
        for _ in range(attempts):
            assert (await keyring.gateway.get("/v1/models", headers={"X-API-Key": "agw_12345678_guess"})).status == 401
        await auth._background.wait(30)
        clock[0] += 1
    rows = await db.fetch("SELECT subject, detail FROM audit_log WHERE action = 'login.refused' ORDER BY id")
    assert [row["subject"] for row in rows] == ["source 127.0.0.1"] * 2
    assert [json.loads(row["detail"])["left_out_before"] for row in rows] == [0, 39]
    for row in rows:
        assert "agw_12345678" in row["detail"]
        assert "guess" not in row["detail"]


@pytest.mark.parametrize(
    ("settings", "stored_keys", "is_rejected"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"api_key": SecretStr("key-for-everyone")}, False, False),
        ({"jwt_secret": SecretStr("s" * 32), "jwt_issuer": "i", "jwt_audience": "a"}, False, False),
        ({"gateway_allow_anonymous": True}, False, False),
        ({"gateway_host": "127.0.0.1"}, False, False),
        ({"gateway_allow_anonymous": True, "gateway_bind": "127.0.0.1:8000"}, False, False),
        ({"gateway_allow_anonymous": True, "gateway_bind": "[::1]:8000"}, False, False),
        ({"gateway_allow_anonymous": True, "gateway_bind": "0.0.0.0:8000"}, False, True),
        ({"gateway_allow_anonymous": True, "gateway_bind": "[::]:8000"}, False, True),
        ({"gateway_allow_anonymous": True, "gateway_bind": "192.168.0.5:8000"}, False, True),
        ({"gateway_allow_anonymous": True, "gateway_bind": "8000"}, False, True),
        ({"gateway_allow_anonymous": True, "gateway_bind": ":8000"}, False, True),
        ({"gateway_host": "127.0.0.1", "gateway_bind": "0.0.0.0:8000"}, False, True),
        ({"gateway_allow_anonymous": True, "gateway_bind": "0.0.0.0:8000"}, True, False),
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


@pytest.mark.parametrize("hosts", ["*", "gateway.example,*", "**", "*:8000", "*.*"])
def test_any_host_name_without_a_credential_is_refused(hosts: str) -> None:
    """A name that an attacker's page has may lead to this machine."""
    local: dict[str, Any] = {"gateway_host": "127.0.0.1"}
    for settings in (local, {"gateway_host": "0.0.0.0", "gateway_allow_anonymous": True}):
        loaded = load_settings(_env_file=None, trusted_hosts=hosts, **settings)
        with pytest.raises(ConfigError, match="TRUSTED_HOSTS: every name"):
            reject_open_gateway(loaded, stored_keys=False)
        reject_open_gateway(loaded, stored_keys=True)
    reject_open_gateway(load_settings(_env_file=None, trusted_hosts="*.example"), stored_keys=False)


async def test_gateway_on_a_public_address_rejects_requests_without_stored_keys(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, gateway_host="0.0.0.0") as gateway:
        assert (await gateway.get("/api/v1/models")).status == 401


async def test_mcp_session_is_rejected_for_another_user(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    await keyring.create_key("bob")
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


async def test_first_key_without_a_role_is_an_admins_and_later_ones_are_users(gateway: Gateway) -> None:
    first = (await gateway.post("/api/v1/keys", {"name": "laptop"})).body
    assert first["role"] == "admin"
    headers = {"X-API-Key": first["key"]}
    await wait_for_status(gateway, 200, headers=headers)
    second = (await gateway.post("/api/v1/keys", {"owner": "bob"}, headers=headers)).body
    assert second["role"] == "user"
