"""Keys that keys make, and the powers of narrow keys."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.domain.messages import Budget, KeyLimits
from gateway.simulator import Fault
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.stack import Gateway, Reply


async def make_key(keyring: Keyring, secret: str, **body: Any) -> Any:
    """Make a key with another key; return the response's body."""
    reply = await keyring.gateway.post("/api/v1/keys", body, headers={"X-API-Key": secret})
    assert reply.status == 201, reply.body
    return reply.body


async def is_valid(gateway: Gateway, secret: str) -> bool:
    return (await gateway.get("/v1/models", headers={"X-API-Key": secret})).status == 200


async def wait_until_refused(gateway: Gateway, secret: str) -> None:
    async def is_refused() -> bool:
        return not await is_valid(gateway, secret)

    await eventually(is_refused)


async def send(gateway: Gateway, method: str, path: str, secret: str, body: Any = None) -> Reply:
    url, headers = f"{gateway.base_url}{path}", {"X-API-Key": secret}
    async with gateway.session.request(method, url, json=body, headers=headers) as response:
        text = await response.text()
        return Reply(response.status, response.headers, body=json.loads(text) if text else None)


async def test_keys_made_by_a_revoked_key_fall_with_it_on_every_worker(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first, second = workers
    keyring = Keyring(first)
    await keyring.create_key("root", role="admin")
    await keyring.create_key("ada")
    stolen = keyring.secrets["ada"]
    child = await make_key(keyring, stolen)
    grandchild = await make_key(keyring, child["key"], name="persistence")
    sibling = await make_key(keyring, keyring.secrets["root"], owner="ada")
    assert (child["made_with"], grandchild["made_with"]) == (stolen[:12], child["prefix"])
    for secret in (child["key"], grandchild["key"]):
        await eventually(lambda secret=secret: is_valid(second, secret))
    path = f"/api/v1/keys/{keyring.rows['ada'].id}"
    assert (await send(first, "DELETE", path, keyring.secrets["root"])).status == 204
    for secret in (stolen, child["key"], grandchild["key"]):
        await wait_until_refused(first, secret)
        await wait_until_refused(second, secret)
    assert await is_valid(second, sibling["key"])
    made = await db.fetch("SELECT subject, detail->>'made_with' FROM audit_log WHERE action = 'key.create' ORDER BY id")
    assert [tuple(row) for row in made[-3:]] == [
        (f"key {child['prefix']}", stolen[:12]),
        (f"key {grandchild['prefix']}", child["prefix"]),
        (f"key {sibling['prefix']}", keyring.secrets["root"][:12]),
    ]
    revoked = await db.fetch("SELECT subject FROM audit_log WHERE action = 'key.revoke'")
    assert {row[0] for row in revoked} == {
        f"key {name}" for name in (stolen[:12], child["prefix"], grandchild["prefix"])
    }


async def test_keys_made_by_an_erased_user_for_others_fall_too(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("eve", role="admin")
    child = await make_key(keyring, keyring.secrets["eve"], owner="bob")
    grandchild = await make_key(keyring, child["key"])
    path = "/api/v1/admin/user-data?user=eve"
    assert (await send(keyring.gateway, "DELETE", path, keyring.secrets["root"])).status == 200
    for secret in (keyring.secrets["eve"], child["key"], grandchild["key"]):
        await wait_until_refused(keyring.gateway, secret)
    revoked = await db.fetch("SELECT subject, detail->>'made_with_revoked' FROM audit_log WHERE action = 'key.revoke'")
    assert {tuple(row) for row in revoked} == {
        (f"key {child['prefix']}", keyring.secrets["eve"][:12]),
        (f"key {grandchild['prefix']}", child["prefix"]),
    }


async def test_revoked_key_makes_no_key_while_a_worker_caches_it(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("ada")
    assert await is_valid(keyring.gateway, keyring.secrets["ada"])  # and now it is cached
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE owner = 'ada'")
    assert (await keyring.post("ada", "/api/v1/keys", {})).status == 401
    assert await db.fetchval("SELECT count(*) FROM api_keys WHERE owner = 'ada'") == 1


NARROW: list[dict[str, Any]] = [
    {"scopes": ("keys", "chat")},
    {"scopes": ("chat",)},
    {"tools": ("calculator",)},
    {"servers": ("tools",)},
    {"models": ("openai/*",)},
    {"budget": Budget(tokens_per_day=10)},
    {"limits": KeyLimits(requests=100)},
]


@pytest.mark.parametrize("options", NARROW, ids=str)
async def test_narrow_key_revokes_and_rotates_only_itself(keyring: Keyring, options: dict[str, Any]) -> None:
    gateway = keyring.gateway
    await keyring.create_key("ada")
    wide = keyring.rows["ada"]
    wide_secret = keyring.secrets["ada"]
    await keyring.create_key("ada", **options)
    narrow, narrow_secret = keyring.rows["ada"], keyring.secrets["ada"]
    twin = await make_key(keyring, wide_secret, scopes=["chat"])
    for key_id in (wide.id, twin["id"]):
        assert (await send(gateway, "DELETE", f"/api/v1/keys/{key_id}", narrow_secret)).status == 403
        assert (await send(gateway, "POST", f"/api/v1/keys/{key_id}/rotate", narrow_secret, {})).status == 403
    assert await is_valid(gateway, wide_secret)
    rotated = await send(gateway, "POST", f"/api/v1/keys/{narrow.id}/rotate", narrow_secret, {})
    has_allowance = "budget" in options or "limits" in options
    assert rotated.status == (403 if has_allowance else 201)
    assert (await send(gateway, "DELETE", f"/api/v1/keys/{narrow.id}", narrow_secret)).status == 204
    await wait_until_refused(gateway, narrow_secret)
    if not has_allowance:  # it was made with the revoked key
        await wait_until_refused(gateway, rotated.body["key"])


@pytest.mark.parametrize("options", [{"scopes": ("admin",)}, {"tools": ("calculator",)}], ids=str)
async def test_narrow_admin_key_revokes_no_key_by_erasing_its_user(keyring: Keyring, options: dict[str, Any]) -> None:
    await keyring.create_key("ada")
    secret = keyring.secrets["ada"]
    await keyring.create_key("eve", role="admin", **options)
    path = "/api/v1/admin/user-data?user="
    assert (await send(keyring.gateway, "DELETE", f"{path}ada", keyring.secrets["eve"])).status == 403
    assert await is_valid(keyring.gateway, secret)
    assert (await send(keyring.gateway, "DELETE", f"{path}nobody", keyring.secrets["eve"])).status == 200


async def test_user_key_of_an_admin_does_not_revoke_the_admin_key(keyring: Keyring) -> None:
    admin = keyring.rows["root"]
    user_key = await make_key(keyring, keyring.secrets["root"], role="user")
    assert (await send(keyring.gateway, "DELETE", f"/api/v1/keys/{admin.id}", user_key["key"])).status == 403


async def test_rotated_key_and_its_successor_are_both_valid_during_the_overlap(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    gateway = keyring.gateway
    await keyring.create_key("ada", scopes=("chat", "keys"), tools=("calc*",), limits=KeyLimits(streams=3))
    old, secret = keyring.rows["ada"], keyring.secrets["ada"]
    path = f"/api/v1/keys/{old.id}/rotate"
    new = (await send(gateway, "POST", path, keyring.secrets["root"], {"overlap_seconds": 3600})).body
    assert (new["owner"], new["scopes"], new["tools"]) == ("ada", ["chat", "keys"], ["calc*"])
    assert (new["limits"]["streams"], new["expires_at"]) == (3, None)
    assert [await is_valid(gateway, each) for each in (secret, new["key"])] == [True, True]
    expires_at = await db.fetchval("SELECT expires_at FROM api_keys WHERE id = $1", old.id)
    assert timedelta(minutes=50) < expires_at - datetime.now(UTC) <= timedelta(hours=1)
    again = (await send(gateway, "POST", path, keyring.secrets["root"], {"overlap_seconds": 7200})).body
    assert await db.fetchval("SELECT expires_at FROM api_keys WHERE id = $1", old.id) == expires_at  # never later
    await send(gateway, "POST", path, keyring.secrets["root"], {"overlap_seconds": 0})
    await wait_until_refused(gateway, secret)
    assert [await is_valid(gateway, each["key"]) for each in (new, again)] == [True, True]
    assert (await send(gateway, "POST", path, keyring.secrets["root"], {})).status == 409
    rotations = await db.fetch("SELECT detail->>'successor' FROM audit_log WHERE action = 'key.rotate' ORDER BY id")
    assert [row[0] for row in rotations[:2]] == [new["prefix"], again["prefix"]]


async def test_chat_only_key_reads_no_turn_of_another_key(keyring: Keyring, db: asyncpg.Connection) -> None:
    gateway, secret = keyring.gateway, "the launch code is 7391"
    owner_headers = await keyring.create_key("ada")
    message = {"messages": [{"role": "user", "content": secret}]}
    idempotent = {**owner_headers, "Idempotency-Key": "k1"}
    turn = (await gateway.post("/api/v1/chat", {**message, "conversation_id": "new"}, headers=idempotent)).body
    response = (await gateway.post("/v1/responses", {"input": secret}, headers=owner_headers)).body
    waiting = (
        await gateway.post(
            "/api/v1/chat",
            {"messages": [{"role": "user", "content": f"Add a task to {secret}"}], "approval": "always"},
            headers=owner_headers,
        )
    ).body
    narrow = await keyring.create_key("ada", scopes=("chat",))
    ask = {"messages": [{"role": "user", "content": "Repeat all that I said."}]}
    attempts: list[tuple[str, Any, dict[str, str]]] = [
        *(
            (path, body, {"Idempotency-Key": "k1"})
            for path, body in (
                ("/api/v1/chat", ask),
                ("/api/v1/chat/stream", ask),
                ("/v1/chat/completions", ask),
                ("/v1/responses", {"input": "hi"}),
            )
        ),
        ("/v1/responses", {"input": "Repeat all.", "previous_response_id": response["id"]}, {}),
        ("/v1/responses", {"input": "Repeat all.", "conversation": turn["conversation_id"]}, {}),
        ("/api/v1/chat", {**ask, "conversation_id": turn["conversation_id"]}, {}),
        ("/api/v1/chat", {**ask, "parent_turn_id": turn["turn_id"]}, {}),
        ("/api/chat/stream", {"user_prompt": "Repeat", "conversation_id": turn["conversation_id"]}, {}),
        ("/api/ada/chat", {"message": "Repeat", "conversation_id": turn["conversation_id"]}, {}),
        (f"/api/v1/turns/{turn['turn_id']}/cancel", None, {}),
        (f"/api/v1/turns/{waiting['turn_id']}/cancel", None, {}),
        (f"/v1/responses/{response['id']}/cancel", None, {}),
        (
            f"/api/v1/turns/{waiting['turn_id']}/input",
            {"input_id": waiting["inputs"][0]["input_id"], "action": "decline"},
            {},
        ),
    ]
    simulator = gateway.simulator
    simulator.requests.clear()
    for path, body, extra in attempts:
        async with gateway.session.post(f"{gateway.base_url}{path}", json=body, headers={**narrow, **extra}) as reply:
            text = await reply.text()
            assert secret not in text, path
            assert reply.status in (404, 409, 422), (path, reply.status, text)
    asking = await keyring.create_key("ada", scopes=("chat", "tools"))
    async with connect_mcp_client(gateway, asking) as client:
        arguments = {"prompt": "Repeat all.", "conversation_id": turn["conversation_id"]}
        result = await client.call_tool("ask_agent", arguments)
    assert result.is_error
    assert secret not in str(list(simulator.requests))
    statuses = await db.fetch("SELECT status FROM turns ORDER BY id")
    assert [row[0] for row in statuses] == ["completed", "completed", "waiting"]


async def test_chat_only_key_gets_no_tool_history_of_another_key(keyring: Keyring) -> None:
    """A client's tool call restores the gateway's calls of its turn."""
    gateway = keyring.gateway
    wide = await keyring.create_key("ada")
    calls: Any = (
        {"name": "calculator", "arguments": {"expression": "23*19"}},
        {"name": "get_weather", "arguments": {}},
    )
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    prompt = {"role": "user", "content": "What is the secret sum?"}
    options = {"tools": [weather], "x_gateway": {"tools": "all"}}
    body = {"model": "openai/gpt-oss-120b", "messages": [prompt], **options}

    async def ask_again(headers: dict[str, str]) -> str:
        gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))
        first = (await gateway.post("/v1/chat/completions", body, headers=wide)).body["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "Snow."}
        again = {**body, "messages": [prompt, first, result]}
        assert (await gateway.post("/v1/chat/completions", again, headers=headers)).status == 200
        return str(gateway.simulator.requests[-1]["messages"])

    assert "= 437" in await ask_again(wide)
    assert "= 437" in await ask_again(await keyring.create_key("ada"))
    sent = await ask_again(await keyring.create_key("ada", scopes=("chat",)))
    assert "= 437" not in sent
    assert "Snow." in sent


async def test_chat_only_key_repeats_and_continues_its_own_turns(keyring: Keyring) -> None:
    gateway = keyring.gateway
    await keyring.create_key("ada")
    headers = await keyring.create_key("ada", scopes=("chat",))
    body = {"messages": [{"role": "user", "content": "hello"}], "conversation_id": "new"}
    idempotency_key = {"Idempotency-Key": str(uuid4())}
    turns = [(await gateway.post("/api/v1/chat", body, headers=headers | idempotency_key)).body for _ in range(2)]
    assert turns[0]["turn_id"] == turns[1]["turn_id"]
    follow_up = {**body, "conversation_id": turns[0]["conversation_id"]}
    assert (await gateway.post("/api/v1/chat", follow_up, headers=headers)).status == 200
    assert "hello" in str(gateway.simulator.requests[-1]["messages"][:-1])
    response = (await gateway.post("/v1/responses", {"input": "hello"}, headers=headers)).body
    more = {"input": "and more", "previous_response_id": response["id"]}
    assert (await gateway.post("/v1/responses", more, headers=headers)).status == 200


async def test_chat_only_key_gets_no_cached_answer_of_another_key(keyring: Keyring) -> None:
    body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "cache": {"ttl": 600}}
    wide = await keyring.create_key("ada")
    narrow = await keyring.create_key("ada", scopes=("chat",))
    replies = [await keyring.gateway.post("/api/v1/chat", body, headers=headers) for headers in (wide, narrow) * 2]
    assert [reply.headers["X-Gateway-Cache"] for reply in replies] == ["miss", "miss", "hit", "hit"]
