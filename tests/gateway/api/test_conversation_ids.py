"""Conversations under integers and under ids that clients choose."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.auth_helpers import Keyring
from tests.stack import Gateway

OWN_IDS = [
    7,
    0,
    "12",
    "my-chat",
    "C0123.456",
    "+4915112345678",
    "auth0|5f7c",
    "ada@example.org:1",
    "x" * 128,
    "5f1d7e84-3f0b-4c65-8a53-0d6f3a1b2c4d",
    "5f1d7e843f0b4c658a530d6f3a1b2c4e",
    "01HF7YAT00B3QK7M5Z8F0E1C2D",
]


async def test_own_id_names_one_conversation_on_native_and_legacy_routes(gateway: Gateway) -> None:
    for own_id in OWN_IDS:
        await check_own_id(gateway, own_id)


async def check_own_id(gateway: Gateway, own_id: Any) -> None:
    first = await gateway.chat("My name is Ada", conversation_id=own_id)
    assert (first.status, first.body["conversation_id"]) == (200, str(own_id))
    body = {"user_prompt": "What is my name?", "session_id": own_id}
    async with gateway.session.post(f"{gateway.base_url}/api/chat/stream", json=body) as response:
        assert (response.status, b'"finished":true' in await response.read()) == (200, True)
    assert "Ada" in str(gateway.simulator.requests[-1]["messages"])
    shown = (await gateway.get(f"/api/v1/conversations/{own_id}")).body
    assert (shown["external_id"], len(shown["turns"])) == (str(own_id), 2)
    by_uuid = await gateway.chat("And now?", conversation_id=shown["id"])
    assert by_uuid.body["conversation_id"] == str(own_id)
    async with gateway.session.delete(f"{gateway.base_url}/api/conversations/{own_id}") as response:
        assert response.status == 200
    assert (await gateway.get(f"/api/v1/conversations/{own_id}")).status == 404
    fresh = await gateway.chat("What is my name?", conversation_id=own_id)
    assert "Ada" not in fresh.body["response"]
    async with gateway.session.delete(f"{gateway.base_url}/api/conversations/{own_id}") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "own_id",
    ["a/b", "..", ".", "a b", "x" * 129, "caf\u00e9", "a\nb", "a\x00b", 1.5, True, ["a"], {"id": "a"}, 10**200],
)
async def test_invalid_own_id_is_a_422_that_names_the_field(shared_gateway: Gateway, own_id: Any) -> None:
    for path, body in (
        ("/api/v1/chat", {"messages": [{"role": "user", "content": "x"}]}),
        ("/api/chat/stream", {"user_prompt": "x"}),
        ("/api/ada/chat", {"message": "x"}),
        ("/stream", {"prompt": "x"}),
    ):
        reply = await shared_gateway.post(path, body | {"conversation_id": own_id})
        assert (reply.status, reply.body["error"]["param"]) == (422, "conversation_id"), (path, reply.body)


async def test_own_id_is_scoped_to_its_user(keyring: Keyring, db: asyncpg.Connection) -> None:
    for user in ("ada", "bob"):
        await keyring.create_key(user)
    first = (await keyring.chat("ada", "My name is Ada", conversation_id="main")).body
    other = (await keyring.chat("bob", "What is my name?", conversation_id="main")).body
    assert "Ada" not in other["response"]
    assert (await keyring.get("bob", "/api/v1/conversations/main")).body["turns"][0]["id"] == other["turn_id"]
    assert (await keyring.get("ada", "/api/v1/conversations/main")).body["turns"][0]["id"] == first["turn_id"]
    assert await db.fetchval("SELECT count(*) FROM conversations WHERE external_id = 'main'") == 2
    foreign = await db.fetchval("SELECT id::text FROM conversations WHERE owner = 'ada'")
    assert (await keyring.chat("bob", "Hello", conversation_id=foreign)).status == 404


async def test_key_without_history_does_not_join_the_conversation_of_another_key(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    await keyring.chat("ada", "My name is Ada", conversation_id="main")
    narrow = await keyring.create_key("ada", scopes=("chat",))
    body = {"messages": [{"role": "user", "content": "What is my name?"}], "conversation_id": "main"}
    reply = await keyring.gateway.post("/api/v1/chat", body, headers=narrow)
    assert (reply.status, reply.body["error"]["param"]) == (404, "conversation_id")


async def test_simultaneous_first_requests_share_the_conversation(gateway: Gateway, db: asyncpg.Connection) -> None:
    replies = await asyncio.gather(*(gateway.chat(f"Prompt {n}", conversation_id="main") for n in range(6)))
    assert {(reply.status, reply.body["conversation_id"]) for reply in replies} == {(200, "main")}
    assert await db.fetchval("SELECT count(*) FROM conversations") == 1
    assert len((await gateway.get("/api/v1/conversations/main")).body["turns"]) == 6


async def test_turn_that_is_not_stored_creates_no_conversation(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat("A secret", conversation_id="main", store=False)
    assert (reply.status, reply.body["conversation_id"]) == (200, None)
    assert await db.fetchval("SELECT count(*) FROM conversations") == 0


async def test_users_of_the_legacy_route_count_their_conversations(gateway: Gateway) -> None:
    async def send(user: str, **more: Any) -> Any:
        return (await gateway.post(f"/api/{user}/chat", {"message": "Hello", **more})).body["conversation_id"]

    assert [await send("ada"), await send("ada", conversation_id=None), await send("bob")] == [1, 2, 1]
    assert await send("ada", conversation_id=1) == 1
    assert [await send("ada", conversation_id=41), await send("ada")] == [41, 42]
    assert sorted(await asyncio.gather(*(send("ada") for _ in range(5)))) == [43, 44, 45, 46, 47]
    assert [await send("ada", conversation_id="007"), await send("ada", conversation_id="main")] == ["007", "main"]
    assert await send("ada", conversation_id=10**15 - 1) == 10**15 - 1
    last = [await send("ada") for _ in range(2)]
    assert len(set(last)) == 2
    assert [await send("ada", conversation_id=each) for each in last] == last


async def test_branch_of_a_conversation_with_an_own_id_keeps_its_name(gateway: Gateway) -> None:
    first = (await gateway.chat("Prompt one", conversation_id="main")).body
    await gateway.chat("Prompt two", conversation_id="main")
    branch = await gateway.chat("Other", conversation_id="main", parent_turn_id=first["turn_id"])
    assert (branch.status, branch.body["conversation_id"]) == (200, "main")
    rejection = await gateway.chat("Other", conversation_id="else", parent_turn_id=first["turn_id"])
    assert rejection.status in (404, 422)
