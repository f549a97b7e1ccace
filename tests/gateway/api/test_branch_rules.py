"""Budgets, limits, approvals and the tree of forks and replays."""

from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest

from gateway.domain.messages import Budget, KeyLimits
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.notes_server import NotesServer
from tests.stack import Gateway, Reply, serve_asgi, serve_gateway

pytestmark = pytest.mark.faults  # ten seconds in all
THREE_STEPS = 'call note {"text": "one"} then look {"place": "attic"} then note {"text": "three"}'
BRANCHES = [("fork", {"after_step": 2}), ("replay", {"on_new_call": "run", "message": 'call note {"text": "new"}'})]


@pytest.fixture
def notes() -> NotesServer:
    return NotesServer()


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, notes: NotesServer) -> AsyncGenerator[Gateway]:
    async with (
        serve_asgi(notes.mcp.streamable_http_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as running,
    ):
        yield running


async def branch(gateway: Gateway, turn_id: str, action: str, **body: Any) -> Reply:
    return await gateway.post(f"/api/v1/turns/{turn_id}/{action}", body)


async def get_status(gateway: Gateway, turn_id: str) -> str:
    return (await gateway.get(f"/api/v1/turns/{turn_id}")).body["status"]


async def test_branch_counts_against_the_budget_of_its_caller(keyring: Keyring, notes: NotesServer) -> None:
    await keyring.create_key("ada")
    turn = (await keyring.chat("ada", THREE_STEPS)).body
    spent = (await keyring.get("ada", "/api/v1/budget")).body["user"]["tokens_today"]
    forked = (await keyring.post("ada", f"/api/v1/turns/{turn['turn_id']}/fork", {"after_step": 2})).body
    view = (await keyring.get("ada", "/api/v1/budget")).body
    assert view["user"]["tokens_today"] == spent + forked["usage"]["total_tokens"]
    await keyring.create_key("ada", budget=Budget(tokens_per_day=1))
    first = (await keyring.post("ada", f"/api/v1/turns/{turn['turn_id']}/fork", {"after_step": 2})).body
    ran = len(notes.calls)
    for action, body in BRANCHES:
        reply = await keyring.post("ada", f"/api/v1/turns/{turn['turn_id']}/{action}", body)
        assert (reply.status, reply.body["error"]["code"]) == (402, "budget_exceeded"), (first, reply.body)
    assert len(notes.calls) == ran


async def test_branch_counts_against_the_running_turns_of_a_key(keyring: Keyring, notes: NotesServer) -> None:
    await keyring.create_key("ada", limits=KeyLimits(streams=1))
    turn = (await keyring.chat("ada", THREE_STEPS)).body
    notes.held_text = "held"
    path = f"{keyring.gateway.base_url}/api/v1/turns/{turn['turn_id']}"
    body = {"after_step": 1, "message": 'call note {"text": "held"}', "stream": True}
    headers = await keyring.create_key("ada", limits=KeyLimits(streams=1))
    async with keyring.gateway.session.post(f"{path}/fork", json=body, headers=headers) as held:
        assert held.status == 200
        for action, other in BRANCHES:
            reply = await keyring.post("ada", f"/api/v1/turns/{turn['turn_id']}/{action}", other)
            assert (reply.status, reply.body["error"]["code"]) == (429, "too_many_streams")
        notes.released.set()
        await held.read()
    assert notes.calls.count(("note", "held")) == 1


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("fork", {"after_step": 1, "message": 'call note {"text": "own"}'}),
        ("replay", {"on_new_call": "run", "message": 'call look {"place": "attic"} then note {"text": "own"}'}),
    ],
)
async def test_own_call_of_a_branch_waits_for_its_approval(
    gateway: Gateway, notes: NotesServer, action: str, body: dict[str, Any]
) -> None:
    turn = (await gateway.chat('call look {"place": "attic"}', approval="destructive")).body
    reply = await branch(gateway, turn["turn_id"], action, **body)
    assert await get_status(gateway, reply.body["turn_id"]) == "waiting"
    [question] = reply.body["inputs"]
    assert (question["kind"], notes.calls) == ("approval", [("look", "attic")])
    answer = {"input_id": question["input_id"], "action": "accept"}
    assert (await gateway.post(f"/api/v1/turns/{reply.body['turn_id']}/input", answer)).status < 300

    async def is_completed() -> bool:
        return await get_status(gateway, reply.body["turn_id"]) == "completed"

    await eventually(is_completed)
    assert notes.calls == [("look", "attic"), ("note", "own")]


async def test_waiting_turn_is_forked_and_still_takes_its_answer(gateway: Gateway, notes: NotesServer) -> None:
    prompt = 'call look {"place": "attic"} then note {"text": "two"}'
    waiting = (await gateway.chat(prompt, approval="destructive", conversation_id="new")).body
    assert await get_status(gateway, waiting["turn_id"]) == "waiting"
    forked = await branch(gateway, waiting["turn_id"], "fork", after_step=1, message="Say hello.")
    assert (forked.status, forked.body["finish_reason"]) == (200, "stop")
    early = await branch(gateway, waiting["turn_id"], "fork", after_step=2)
    assert (early.status, early.body["error"]["param"]) == (422, "after_step")
    assert notes.calls == [("look", "attic")]
    answer = {"input_id": waiting["inputs"][0]["input_id"], "action": "accept"}
    assert (await gateway.post(f"/api/v1/turns/{waiting['turn_id']}/input", answer)).status < 300

    async def is_completed() -> bool:
        return await get_status(gateway, waiting["turn_id"]) == "completed"

    await eventually(is_completed)
    assert notes.calls == [("look", "attic"), ("note", "two")]


async def test_running_turn_is_forked_after_a_finished_step(gateway: Gateway, notes: NotesServer) -> None:
    notes.held_text = "held"
    async with gateway.stream('call look {"place": "attic"} then note {"text": "held"}') as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("tool.result")

        async def is_held() -> bool:
            return ("note", "held") in notes.calls

        await eventually(is_held)
        forked = await branch(gateway, turn_id, "fork", after_step=1, message='call note {"text": "other"}')
        assert [call["source"] for call in forked.body["tool_calls"]] == ["recorded", None]
        assert await get_status(gateway, turn_id) == "running"
        replayed = await branch(gateway, turn_id, "replay")
        assert [call["source"] for call in replayed.body["tool_calls"]] == ["recorded", "not_run"]
        notes.released.set()
        await stream.read_until("turn.completed")
    assert notes.calls == [("look", "attic"), ("note", "held"), ("note", "other")]


async def test_fork_of_a_turn_in_the_middle_of_the_tree_has_the_history_before_it(
    gateway: Gateway, notes: NotesServer
) -> None:
    first = (await gateway.chat("My name is Ada.", conversation_id="new")).body
    conversation = first["conversation_id"]
    second = (await gateway.chat('call look {"place": "attic"}', conversation_id=conversation)).body
    third = (await gateway.chat("My name is Bob.", conversation_id=conversation)).body
    gateway.simulator.requests.clear()
    forked = (await branch(gateway, second["turn_id"], "fork", after_step=1, message="What is my name?")).body
    assert forked["response"].startswith("Your name is Ada.")
    sent = [message["content"] for message in gateway.simulator.requests[-1]["messages"] if message["role"] == "user"]
    assert sent == ["My name is Ada.", 'call look {"place": "attic"}', "What is my name?"]
    tree = (await gateway.get(f"/api/v1/conversations/{conversation}")).body
    parents = {turn["id"]: turn["parent_id"] for turn in tree["turns"]}
    assert parents == {
        first["turn_id"]: None,
        second["turn_id"]: first["turn_id"],
        third["turn_id"]: second["turn_id"],
        forked["turn_id"]: first["turn_id"],
    }
    assert len(notes.calls) == 1


async def test_branch_of_a_branch_keeps_what_was_taken(gateway: Gateway, notes: NotesServer) -> None:
    turn = (await gateway.chat(THREE_STEPS)).body
    forked = (await branch(gateway, turn["turn_id"], "fork", after_step=2)).body
    replayed = (await branch(gateway, forked["turn_id"], "replay")).body
    again = (await branch(gateway, replayed["turn_id"], "fork", after_step=3, message="Thanks.")).body
    assert [call["source"] for call in again["tool_calls"]] == ["recorded"] * 3
    assert notes.calls == [("note", "one"), ("look", "attic"), ("note", "three"), ("note", "three")]


async def test_fork_keeps_its_steps_when_its_origin_is_deleted(
    keyring: Keyring, notes: NotesServer, db: asyncpg.Connection
) -> None:
    await keyring.create_key("ada")
    turn = (await keyring.chat("ada", THREE_STEPS)).body
    forked = (await keyring.post("ada", f"/api/v1/turns/{turn['turn_id']}/fork", {"after_step": 2})).body
    response_id = f"resp_{turn['turn_id'].replace('-', '')}"
    assert await keyring.request_status("DELETE", "ada", f"/v1/responses/{response_id}") == 200
    kept = (await keyring.get("ada", f"/api/v1/turns/{forked['turn_id']}")).body
    assert [message["role"] for message in kept["messages"]].count("tool") == 3  # its own copy
    path = f"/api/v1/turns/{turn['turn_id']}/compare/{forked['turn_id']}"
    assert await keyring.request_status("GET", "ada", path, None) == 404
    assert await db.fetchval("SELECT count(*) FROM turns") == 1


async def test_fork_after_a_call_of_the_client_needs_its_result(gateway: Gateway, notes: NotesServer) -> None:
    tool = {
        "type": "function",
        "function": {"name": "ask_pilot", "description": "Ask.", "parameters": {"type": "object"}},
    }
    turn = (await gateway.chat("use ask_pilot with {}", tools=[tool])).body
    [call] = turn["tool_calls"]
    refused = await branch(gateway, turn["turn_id"], "fork", after_step=1)
    assert (refused.status, refused.body["error"]["param"]) == (422, "after_step")
    assert repr(call["id"]) in refused.body["error"]["message"]
    forked = await branch(gateway, turn["turn_id"], "fork", after_step=1, results={call["id"]: "All is well."})
    assert forked.status == 200, forked.body
    [taken] = forked.body["tool_calls"]
    assert (taken["source"], taken["content"][0]["text"]) == ("replaced", "All is well.")


async def test_replay_with_another_system_prompt_sends_it(gateway: Gateway, notes: NotesServer) -> None:
    turn = (await gateway.chat('call look {"place": "attic"}', system="Be kind.")).body
    reply = await branch(gateway, turn["turn_id"], "replay", system="Be short.")
    assert [call["source"] for call in reply.body["tool_calls"]] == ["recorded"]
    sent = gateway.simulator.requests[-1]["messages"][0]["content"]
    assert ("Be short." in sent, "Be kind." in sent) == (True, False)


async def test_turns_that_run_or_wait_are_compared(gateway: Gateway, notes: NotesServer) -> None:
    waiting = (await gateway.chat('call note {"text": "two"}', approval="destructive")).body["turn_id"]
    other = (await gateway.chat("Say hello.")).body["turn_id"]
    path = f"/api/v1/turns/{waiting}/compare/{other}"
    compared = (await gateway.get(path)).body
    assert (compared["left"]["status"], compared["right"]["status"]) == ("waiting", "completed")
    assert compared["difference"]["calls"] == -1
    async with gateway.session.get(f"{gateway.base_url}{path}?format=text") as response:
        assert "- call note" in await response.text()
    await gateway.post(f"/api/v1/turns/{waiting}/cancel", {})
