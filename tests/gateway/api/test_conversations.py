"""Conversations: administration, continuation, branches, and one running turn at a time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Fault
from tests.conftest import count_lock_waits
from tests.eventually import eventually
from tests.stack import Gateway


async def start_conversation(gateway: Gateway, prompt: str = "My name is Ada.") -> tuple[str, str]:
    reply = await gateway.chat(prompt, conversation_id="new")
    assert reply.status == 200, reply.body
    return reply.body["conversation_id"], reply.body["turn_id"]


async def send_request(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
    async with gateway.session.request(method, f"{gateway.base_url}{path}", json=body) as response:
        return response.status, await response.json() if response.status != 204 else None, response.headers


async def test_conversations_are_listed_newest_first_in_pages(gateway: Gateway) -> None:
    ids = [(await start_conversation(gateway, f"Prompt {n}"))[0] for n in range(5)]
    first_page = (await gateway.get("/api/v1/conversations?limit=3")).body
    assert [c["title"] for c in first_page["conversations"]] == ["Prompt 4", "Prompt 3", "Prompt 2"]
    second_page = (await gateway.get(f"/api/v1/conversations?limit=3&before={first_page['next']}")).body
    assert [c["id"] for c in second_page["conversations"]] == ids[1::-1]
    assert second_page["next"] is None


async def test_conversation_is_shown_renamed_exported_and_deleted(gateway: Gateway, db: asyncpg.Connection) -> None:
    conversation_id, turn_id = await start_conversation(gateway, "What is 23*19?")
    path = f"/api/v1/conversations/{conversation_id}"
    _, conversation, _ = await send_request(gateway, "GET", path)
    assert [turn["id"] for turn in conversation["turns"]] == [turn_id]
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert (await send_request(gateway, "PATCH", path, {"title": " New  name "}))[1]["title"] == "New name"
    status, exported, headers = await send_request(gateway, "GET", f"{path}/export")
    assert (status, exported["title"], exported["turns"]) == (200, "New name", conversation["turns"])
    assert f'filename="conversation-{conversation_id}.json"' in headers["content-disposition"]
    assert (await send_request(gateway, "DELETE", path))[0] == 204
    for table in ("turns", "turn_events", "tool_calls", "conversations"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert (await send_request(gateway, "GET", path))[0] == 404


@asynccontextmanager
async def delayed_inserts(db: asyncpg.Connection, table: str, delete: str) -> AsyncGenerator[None]:
    """Delay inserts into a table until a statement has deleted rows."""
    async with db.transaction():
        await db.execute(f"LOCK TABLE {table} IN SHARE MODE")
        yield
        await eventually(lambda: count_lock_waits(db, table))
        await db.execute(delete)


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
async def test_turn_of_a_conversation_that_is_deleted_meanwhile_is_not_found(
    gateway: Gateway, db: asyncpg.Connection, store: bool
) -> None:
    conversation_id, _ = await start_conversation(gateway)
    async with delayed_inserts(db, "turns", "DELETE FROM conversations"):
        chat = asyncio.create_task(gateway.chat("Hello", conversation_id=conversation_id, store=store))
    reply = await chat
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")
    assert reply.body["error"]["param"] == "conversation_id"
    assert await db.fetchval("SELECT count(*) FROM turns") == 0


async def test_rating_of_a_turn_that_is_deleted_meanwhile_is_not_found(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    _, turn_id = await start_conversation(gateway)
    async with delayed_inserts(db, "turn_feedback", "DELETE FROM turns"):
        rate = asyncio.create_task(gateway.post(f"/api/v1/turns/{turn_id}/feedback", {"rating": "up"}))
    reply = await rate
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")


async def test_deleting_a_conversation_cancels_its_running_turn(workers: list[Gateway], db: asyncpg.Connection) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 5000", conversation_id="new") as stream:
        turn_started = (await stream.read_until("turn.started")).data
        await stream.read_until("text.delta")
        status, _, _ = await send_request(
            second_worker, "DELETE", f"/api/v1/conversations/{turn_started['conversation_id']}"
        )
        assert status == 204
        await stream.read_until("turn.cancelled")
    assert await db.fetchval("SELECT count(*) FROM turns") == 0


async def test_conversations_of_other_users_are_not_found(gateway: Gateway, db: asyncpg.Connection) -> None:
    conversation_id, turn_id = await start_conversation(gateway)
    await db.execute("UPDATE conversations SET owner = 'another user'")
    await db.execute("UPDATE turns SET owner = 'another user'")
    path = f"/api/v1/conversations/{conversation_id}"
    for method, suffix, body in (
        ("GET", "", None),
        ("GET", "/export", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
    ):
        assert (await send_request(gateway, method, path + suffix, body))[0] == 404
    assert (await gateway.get("/api/v1/conversations")).body["conversations"] == []
    assert (await gateway.chat("Hello", parent_turn_id=turn_id)).status == 404


# --- one turn at a time


async def test_second_turn_waits_for_the_first_and_sees_its_messages(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first_worker, second_worker = workers
    conversation_id, _ = await start_conversation(first_worker, "Hello")
    async with first_worker.stream("count to 100", conversation_id=conversation_id) as stream:
        await stream.read_until("text.delta")
        waiting = asyncio.create_task(second_worker.chat("What did I ask?", conversation_id=conversation_id))
        first = await stream.read_until("turn.completed")
    second = await waiting
    assert second.status == 200
    assert "count to 100" in second.body["response"]
    parents = [row["parent_id"] for row in await db.fetch("SELECT parent_id FROM turns ORDER BY id")]
    ids = [row["id"] for row in await db.fetch("SELECT id FROM turns ORDER BY id")]
    assert parents == [None, *ids[:-1]]
    assert first.data["steps"] == 1


async def test_concurrent_turns_of_a_conversation_form_one_chain(gateway: Gateway, db: asyncpg.Connection) -> None:
    conversation_id, _ = await start_conversation(gateway)
    requests = [gateway.chat(f"Prompt {n}", conversation_id=conversation_id) for n in range(8)]
    replies = await asyncio.gather(*requests)
    assert {reply.status for reply in replies} == {200}
    children = {row["parent_id"]: row["id"] for row in await db.fetch("SELECT id, parent_id FROM turns")}
    chain = [children[None]]  # ids are made before the turns wait, so they do not order them
    while chain[-1] in children:
        chain.append(children[chain[-1]])
    assert len(chain) == 9
    assert await db.fetchval("SELECT count(*) FROM turns WHERE busy_conversation_id IS NOT NULL") == 0


async def test_second_turn_is_rejected_with_if_busy_reject(workers: list[Gateway]) -> None:
    first_worker, second_worker = workers
    conversation_id, _ = await start_conversation(first_worker, "Hello")
    async with first_worker.stream("count to 100", conversation_id=conversation_id) as stream:
        await stream.read_until("text.delta")
        first_worker.simulator.pause_streams()
        rejection = await second_worker.chat("Hello", conversation_id=conversation_id, if_busy="reject")
        assert (rejection.status, rejection.body["error"]["code"]) == (409, "conversation_busy")
        first_worker.simulator.resume_streams()
        await stream.read_until("turn.completed")
    assert (await second_worker.chat("Hello", conversation_id=conversation_id, if_busy="reject")).status == 200


async def test_turn_waiting_for_input_keeps_its_conversation_busy(gateway: Gateway) -> None:
    waiting = await gateway.chat("Add a task to buy milk", conversation_id="new", approval="always")
    rejection = await gateway.chat("Hello", conversation_id=waiting.body["conversation_id"])
    assert (rejection.status, rejection.body["error"]["code"]) == (409, "conversation_busy")
    assert "waits for an answer" in rejection.body["error"]["message"]


async def test_failed_turn_frees_its_conversation_and_is_omitted_from_history(gateway: Gateway) -> None:
    conversation_id, _ = await start_conversation(gateway)
    gateway.simulator.faults.add_faults(Fault(kind="status", status=401))
    assert (await gateway.chat("zebra", conversation_id=conversation_id)).status == 502
    assert "Ada" in (await gateway.chat("What is my name?", conversation_id=conversation_id)).body["response"]
    assert "zebra" not in str(gateway.simulator.requests[-1]["messages"])


# --- branches


async def test_history_follows_the_branch_of_the_parent_turn(gateway: Gateway) -> None:
    conversation_id, first = await start_conversation(gateway, "Prompt one")
    second = (await gateway.chat("Prompt two", conversation_id=conversation_id)).body["turn_id"]
    edited = (await gateway.chat("Prompt other", parent_turn_id=first)).body
    assert edited["conversation_id"] == conversation_id
    edited_history = await gateway.chat("What did I ask?", parent_turn_id=edited["turn_id"])
    assert "Prompt one; Prompt other" in edited_history.body["response"]
    original_history = await gateway.chat("What did I ask?", parent_turn_id=second)
    assert "Prompt one; Prompt two" in original_history.body["response"]
    _, conversation, _ = await send_request(gateway, "GET", f"/api/v1/conversations/{conversation_id}")
    assert len(conversation["turns"]) == 5
    prompts = [message["content"] for message in conversation["messages"] if message["role"] == "user"]
    assert prompts == ["Prompt one", "Prompt two", "What did I ask?"]


async def test_branches_run_concurrently(workers: list[Gateway]) -> None:
    first_worker, second_worker = workers
    _, first = await start_conversation(first_worker)
    async with first_worker.stream("count to 100", parent_turn_id=first) as stream:
        await stream.read_until("text.delta")
        assert "Ada" in (await second_worker.chat("What is my name?", parent_turn_id=first)).body["response"]
        await stream.read_until("turn.completed")


async def test_unfinished_turn_cannot_be_a_parent(gateway: Gateway) -> None:
    waiting = await gateway.chat("Add a task to buy milk", approval="always")
    rejection = await gateway.chat("Hello", parent_turn_id=waiting.body["turn_id"])
    assert (rejection.status, rejection.body["error"]["param"]) == (409, "parent_turn_id")


async def test_turn_of_another_conversation_cannot_be_a_parent(gateway: Gateway) -> None:
    conversation_id, first = await start_conversation(gateway)
    _, other_turn = await start_conversation(gateway)
    turn_without_conversation = (await gateway.chat("Hello")).body["turn_id"]
    for parent in (other_turn, turn_without_conversation):
        rejection = await gateway.chat("Hello", conversation_id=conversation_id, parent_turn_id=parent)
        assert (rejection.status, rejection.body["error"]["param"]) == (422, "parent_turn_id")
    assert (await gateway.chat("Hello", conversation_id=conversation_id, parent_turn_id=first)).status == 200


@pytest.mark.parametrize("body", [{"title": ""}, {"title": 1}, {"name": "x"}, {}])
async def test_invalid_update_is_a_422(shared_gateway: Gateway, body: Any) -> None:
    conversation_id, _ = await start_conversation(shared_gateway)
    assert (await send_request(shared_gateway, "PATCH", f"/api/v1/conversations/{conversation_id}", body))[0] == 422
