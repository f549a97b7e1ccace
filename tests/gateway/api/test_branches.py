"""Forks, replays and comparisons of turns."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.notes_server import NotesServer
from tests.stack import Gateway, Reply, Stream, serve_asgi, serve_gateway

THREE_STEPS = 'call note {"text": "one"} then look {"place": "attic"} then note {"text": "three"}'
REPLAY_MODEL = "openai/gpt-oss-20b"


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


async def run_three_steps(gateway: Gateway, prompt: str = THREE_STEPS, **body: Any) -> dict[str, Any]:
    reply = await gateway.chat(prompt, **body)
    assert reply.status == 200, reply.body
    return reply.body


async def fork(gateway: Gateway, turn_id: str, after_step: int, **body: Any) -> Reply:
    return await gateway.post(f"/api/v1/turns/{turn_id}/fork", {"after_step": after_step, **body})


async def replay(gateway: Gateway, turn_id: str, **body: Any) -> Reply:
    return await gateway.post(f"/api/v1/turns/{turn_id}/replay", body)


async def test_fork_after_the_second_of_three_steps_runs_the_tools_of_two_steps_once(
    gateway: Gateway, notes: NotesServer, db: asyncpg.Connection
) -> None:
    turn = await run_three_steps(gateway, conversation_id="new")
    assert [call["tool"] for call in turn["tool_calls"]] == ["note", "look", "note"]
    ran = len(notes.calls)
    forked = (await fork(gateway, turn["turn_id"], 2)).body
    assert notes.calls[ran:] == [("note", "three")]
    assert notes.calls.count(("note", "one")) == notes.calls.count(("look", "attic")) == 1
    assert [call["source"] for call in forked["tool_calls"]] == ["recorded", "recorded", None]
    assert [call["content"] for call in forked["tool_calls"]][:2] == [call["content"] for call in turn["tool_calls"]][
        :2
    ]
    assert forked["origin"] == {"kind": "fork", "turn_id": turn["turn_id"], "after_step": 2}
    assert forked["steps"] == turn["steps"] == 4
    assert forked["conversation_id"] == turn["conversation_id"]
    assert 0 < forked["usage"]["total_tokens"] < turn["usage"]["total_tokens"]
    stored = (await gateway.get(f"/api/v1/turns/{forked['turn_id']}")).body
    assert [stored["origin_id"], stored["is_replay"], stored["parent_id"]] == [turn["turn_id"], False, None]
    assert [message["role"] for message in stored["messages"]] == ["user"] + ["assistant", "tool"] * 3 + ["assistant"]
    usage = await db.fetch("SELECT total_tokens FROM turn_usage ORDER BY at")
    assert [row[0] for row in usage] == [turn["usage"]["total_tokens"], forked["usage"]["total_tokens"]]


async def test_fork_gives_the_model_the_message_and_the_replaced_result(gateway: Gateway, notes: NotesServer) -> None:
    turn = await run_three_steps(gateway)
    look = turn["tool_calls"][1]["id"]
    gateway.simulator.requests.clear()
    results = {look: {"text": "The attic burned down.", "outcome": "error"}}
    reply = await fork(gateway, turn["turn_id"], 2, message="Say hello instead.", results=results, model=REPLAY_MODEL)
    assert reply.status == 200, reply.body
    request = gateway.simulator.requests[-1]
    assert request["model"] == REPLAY_MODEL
    assert [message["role"] for message in request["messages"][1:]] == [
        *["user", "assistant", "tool", "assistant", "tool"],
        "user",
    ]
    assert request["messages"][-2]["content"] == "Error: The attic burned down."
    assert request["messages"][-1]["content"] == "Say hello instead."
    assert reply.body["tool_calls"][1]["source"] == "replaced"
    assert len(notes.calls) == 3
    stored = (await gateway.get(f"/api/v1/turns/{reply.body['turn_id']}")).body
    assert stored["prompt"] == "Say hello instead."
    again = (await fork(gateway, reply.body["turn_id"], 2)).body  # a fork of the fork, before its message
    assert [call["source"] for call in again["tool_calls"]] == ["recorded", "recorded", None]


async def test_fork_after_step_zero_starts_again_with_another_prompt(gateway: Gateway, notes: NotesServer) -> None:
    turn = await run_three_steps(gateway)
    forked = (await fork(gateway, turn["turn_id"], 0, message='call note {"text": "four"}')).body
    assert notes.calls[3:] == [("note", "four")]
    stored = (await gateway.get(f"/api/v1/turns/{forked['turn_id']}")).body
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"after_step": 9}, "after_step", "has 4 finished steps"),
        ({"after_step": 4}, "message", "is the turn's answer"),
        ({"after_step": 1, "results": {"call_x": "a", "call_y": "b"}}, "results", "no call 'call_x', 'call_y'"),
        ({"after_step": 2, "message": ""}, "message", "at least 1"),
        ({"after_step": -1}, "after_step", "greater than or equal to 0"),
        ({"after_step": 1, "extra": 1}, "extra", "extra"),
        ({}, "after_step", "required"),
        ({"after_step": 1, "message": "x" * 600_000}, "message", "characters"),
    ],
)
async def test_fork_that_makes_no_sense_is_refused_by_name(
    gateway: Gateway, db: asyncpg.Connection, body: dict[str, Any], param: str, words: str
) -> None:
    turn = await run_three_steps(gateway)
    reply = await gateway.post(f"/api/v1/turns/{turn['turn_id']}/fork", body)
    assert (reply.status, reply.body["error"]["param"]) == (422, param), reply.body
    assert words in reply.body["error"]["message"]
    assert await db.fetchval("SELECT count(*) FROM turns") == 1


async def test_replay_against_another_model_makes_no_call(
    gateway: Gateway, notes: NotesServer, db: asyncpg.Connection
) -> None:
    turn = await run_three_steps(gateway)
    calls = list(notes.calls)
    reply = await replay(gateway, turn["turn_id"], model=REPLAY_MODEL)
    assert reply.status == 200, reply.body
    assert notes.calls == calls
    assert reply.body["model"] == REPLAY_MODEL
    assert reply.body["finish_reason"] == "stop"
    assert [(call["tool"], call["source"]) for call in reply.body["tool_calls"]] == [
        ("note", "recorded"),
        ("look", "recorded"),
        ("note", "recorded"),
    ]
    assert reply.body["origin"] == {"kind": "replay", "turn_id": turn["turn_id"], "after_step": 0}
    stats = (await gateway.get("/api/v1/admin/stats")).body
    assert sum(tool["calls"] for tool in stats["tools"]) == 3  # those of the first turn
    assert await db.fetchval("SELECT count(*) FROM tool_calls WHERE source = 'recorded'") == 3


@pytest.mark.parametrize(
    ("on_new_call", "ran", "sources", "finish_reason"),
    [
        ("stop", [], ["recorded", "not_run"], "new_call"),
        ("run_read_only", [("look", "cellar")], ["recorded", None, "not_run"], "new_call"),
        ("run", [("look", "cellar"), ("note", "new")], ["recorded", None, None], "stop"),
    ],
)
async def test_new_calls_of_a_replay_run_as_the_request_says(
    gateway: Gateway,
    notes: NotesServer,
    on_new_call: str,
    ran: list[tuple[str, str]],
    sources: list[str | None],
    finish_reason: str,
) -> None:
    turn = await run_three_steps(gateway)
    prompt = 'call note {"text": "one"} then look {"place": "cellar"} then note {"text": "new"}'
    reply = await replay(gateway, turn["turn_id"], message=prompt, on_new_call=on_new_call)
    assert reply.status == 200, reply.body
    assert notes.calls[3:] == ran
    assert [call["source"] for call in reply.body["tool_calls"]] == sources
    assert reply.body["finish_reason"] == finish_reason
    again = (await replay(gateway, reply.body["turn_id"])).body  # a call that did not run has no result to repeat
    assert [call["source"] for call in again["tool_calls"]] == [
        "not_run" if source == "not_run" else "recorded" for source in sources
    ]


async def test_equal_arguments_in_another_form_get_the_recorded_result(gateway: Gateway, notes: NotesServer) -> None:
    """Defaults, the order of fields and forms of numbers do not matter.

    A further equal call is new.
    """
    turn = await run_three_steps(gateway, 'call look {"place": "attic"} then look {"place": "attic", "depth": 2}')
    prompt = 'call look {"depth": 2.0, "place": "attic"} then look {"depth": 1, "place": "attic"}'
    reply = await replay(gateway, turn["turn_id"], message=prompt)
    assert [call["content"][0]["text"][-2] for call in reply.body["tool_calls"]] == ["2", "1"]
    assert [call["source"] for call in reply.body["tool_calls"]] == ["recorded"] * 2
    prompt = 'call look {"place": "attic"} then look {"place": "attic"}'
    reply = await replay(gateway, turn["turn_id"], message=prompt)
    assert [call["source"] for call in reply.body["tool_calls"]] == ["recorded", "not_run"]
    assert len(notes.calls) == 2


async def test_later_turns_follow_the_newest_fork_but_no_replay(gateway: Gateway) -> None:
    first = await run_three_steps(gateway, conversation_id="new")
    conversation_id, turn_id = first["conversation_id"], first["turn_id"]
    replayed = (await replay(gateway, turn_id)).body
    second = (await gateway.chat("Hello", conversation_id=conversation_id)).body
    forked = (await fork(gateway, turn_id, 2)).body
    third = (await gateway.chat("Hello again", conversation_id=conversation_id)).body
    named = (await gateway.chat("Why?", conversation_id=conversation_id, parent_turn_id=replayed["turn_id"])).body
    tree = (await gateway.get(f"/api/v1/conversations/{conversation_id}")).body
    parents = {turn["id"]: turn["parent_id"] for turn in tree["turns"]}
    assert parents == {
        turn_id: None,
        replayed["turn_id"]: None,
        second["turn_id"]: turn_id,
        forked["turn_id"]: None,
        third["turn_id"]: forked["turn_id"],
        named["turn_id"]: replayed["turn_id"],
    }
    origins = [(turn["origin_id"], turn["is_replay"]) for turn in tree["turns"]]
    assert origins == [(None, False), (turn_id, True), (None, False), (turn_id, False), (None, False), (None, False)]
    assert tree["head_id"] == named["turn_id"]
    assert [message["content"] for message in tree["messages"] if message["role"] == "user"] == [THREE_STEPS, "Why?"]
    branch = (await gateway.get(f"/api/v1/conversations/{conversation_id}?branch={third['turn_id']}")).body
    assert branch["head_id"] == third["turn_id"]
    assert branch["messages"][-2]["content"] == "Hello again"
    missing = await gateway.get(f"/api/v1/conversations/{conversation_id}?branch={conversation_id}")
    assert (missing.status, missing.body["error"]["param"]) == (404, "branch")


async def test_forks_of_others_are_not_found_and_keys_keep_their_limits(keyring: Keyring, notes: NotesServer) -> None:
    await keyring.create_key("ada")
    await keyring.create_key("bob")
    turn = (await keyring.chat("ada", THREE_STEPS)).body
    path = f"/api/v1/turns/{turn['turn_id']}"
    for action, body in (("fork", {"after_step": 1}), ("replay", {})):
        assert await keyring.request_status("POST", "bob", f"{path}/{action}", body) == 404
        await keyring.create_key("ada", scopes=["chat"])  # may read only what it started itself
        assert await keyring.request_status("POST", "ada", f"{path}/{action}", body) == 404
        await keyring.create_key("ada", scopes=["history"])
        assert await keyring.request_status("POST", "ada", f"{path}/{action}", body) == 403
        await keyring.create_key("ada", models=["none/*"])
        assert await keyring.request_status("POST", "ada", f"{path}/{action}", body) == 403
    await keyring.create_key("ada", role="viewer")
    assert await keyring.request_status("POST", "ada", f"{path}/fork", {"after_step": 1}) == 403
    await keyring.create_key("ada", tools=["look"])
    ran = len(notes.calls)
    reply = await keyring.post("ada", f"{path}/fork", {"after_step": 1})
    assert reply.status == 200
    offered = [tool["function"]["name"] for tool in keyring.gateway.simulator.requests[-1]["tools"]]
    assert (offered, notes.calls[ran:]) == (["look"], [])  # `note` is taken over, but not on offer to this key
    assert await keyring.request_status("POST", "ada", f"/api/v1/turns/{turn['turn_id'][:-4]}0000/replay", {}) == 404


async def test_repeated_fork_with_an_idempotency_key_is_the_same_turn(gateway: Gateway, notes: NotesServer) -> None:
    turn = await run_three_steps(gateway)
    path, headers = f"/api/v1/turns/{turn['turn_id']}/fork", {"Idempotency-Key": "once"}
    first = await gateway.post(path, {"after_step": 2}, headers=headers)
    second = await gateway.post(path, {"after_step": 2}, headers=headers)
    assert first.body["turn_id"] == second.body["turn_id"]
    assert len(notes.calls) == 4


async def test_turns_without_their_steps_are_refused(gateway: Gateway, db: asyncpg.Connection) -> None:
    unstored = await run_three_steps(gateway, store=False)
    reply = await fork(gateway, unstored["turn_id"], 1)
    assert (reply.status, reply.body["error"]["code"]) == (409, "turn_not_kept")
    turn = await run_three_steps(gateway)
    await db.execute("DELETE FROM turn_events WHERE turn_id = $1::uuid", turn["turn_id"])
    reply = await fork(gateway, turn["turn_id"], 1)
    assert (reply.status, reply.body["error"]["code"]) == (410, "journal_expired")


async def test_replay_of_a_worker_that_crashed_in_a_recorded_call_gets_its_result(
    gateway: Gateway, notes: NotesServer, db: asyncpg.Connection
) -> None:
    """Start with the rows of a worker that crashed in a call.

    The result of the call was not stored.
    """
    turn = await run_three_steps(gateway)
    replayed = (await replay(gateway, turn["turn_id"])).body["turn_id"]
    payload = await db.fetchval(
        "SELECT string_agg(payload, E'\\n' ORDER BY first_seq) FROM turn_events WHERE turn_id = $1::uuid", replayed
    )
    events = payload.split("\n")
    first_result = next(number for number, event in enumerate(events) if '"type":"tool.result"' in event)
    kept = [event for event in events[: first_result + 2] if '"type":"tool.result"' not in event]
    async with db.transaction():
        await db.execute("DELETE FROM turn_events WHERE turn_id = $1::uuid", replayed)
        await db.execute("DELETE FROM turn_usage WHERE turn_id = $1::uuid", replayed)
        await db.execute("INSERT INTO turn_events VALUES ($1::uuid, 1, $2, $3)", replayed, len(kept), "\n".join(kept))
        await db.execute(
            "UPDATE turns SET status = 'running', worker_id = NULL, completed_at = NULL,"
            " messages = jsonb_build_array(messages->0) WHERE id = $1::uuid",
            replayed,
        )
    events = await read_turn_events(gateway, replayed)
    results = [event.data["source"] for event in events if event.type == "tool.result"]
    assert (results, events[-2].type) == (["recorded"] * 3, "turn.completed")
    assert len(notes.calls) == 3


@pytest.mark.parametrize("action", ["fork", "replay"])
async def test_another_worker_continues_without_running_a_call_again(
    database_url: str, slow_simulator: Simulator, notes: NotesServer, action: str
) -> None:
    """The first worker stops, and the second one takes the turn over."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_asgi(notes.mcp.streamable_http_app()))
        workers = [
            await stack.enter_async_context(
                serve_gateway(database_url, slow_simulator, f"{url}/mcp", heartbeat_seconds=0.5)
            )
            for _ in range(2)
        ]
        turn = await run_three_steps(workers[0])
        body: dict[str, Any] = {"stream": True, "on_disconnect": "continue"}
        if action == "fork":
            body |= {"after_step": 2, "message": "count to 300"}
        path = f"{workers[0].base_url}/api/v1/turns/{turn['turn_id']}/{action}"
        async with workers[0].session.post(path, json=body) as response:
            branch_id = response.headers["x-turn-id"]
            await Stream(response).read_until("text.delta" if action == "fork" else "tool.result")
            await workers[0].state.stop(0)
        events = await read_turn_events(workers[1], branch_id)

        async def is_completed() -> bool:
            return (await workers[1].get(f"/api/v1/turns/{branch_id}")).body["status"] == "completed"

        await eventually(is_completed)
    assert events[-2].type == "turn.completed"
    assert [event.data["source"] for event in events if event.type == "tool.result"] == ["recorded"] * (
        2 if action == "fork" else 3
    )
    assert len(notes.calls) == 3


async def test_two_turns_are_compared_as_json_and_as_a_diff(gateway: Gateway) -> None:
    turn = await run_three_steps(gateway)
    prompt = 'call note {"text": "one"} then look {"place": "cellar"}'
    other = (await replay(gateway, turn["turn_id"], message=prompt, model=REPLAY_MODEL, on_new_call="run")).body
    path = f"/api/v1/turns/{turn['turn_id']}/compare/{other['turn_id']}"
    compared = (await gateway.get(path)).body
    assert [compared[side]["turn_id"] for side in ("left", "right")] == [turn["turn_id"], other["turn_id"]]
    assert compared["right"]["model"] == REPLAY_MODEL
    for figure in ("total_tokens", "duration_ms", "cost_usd", "calls"):
        difference = compared["right"][figure] - compared["left"][figure]
        assert compared["difference"][figure] == pytest.approx(difference, abs=1e-6)
    assert compared["difference"]["calls"] == -1
    assert [step["same_calls"] for step in compared["steps"]] == [True, False, False, False]
    second = compared["steps"][1]
    assert [second[side]["calls"][0]["arguments"] for side in ("left", "right")] == [
        {"place": "attic"},
        {"place": "cellar"},
    ]
    assert second["right"]["cost_usd"] > 0
    assert compared["steps"][3]["right"] is None
    assert (compared["same_response"], compared["truncated"]) == (False, False)
    for query, accept in (("?format=text", "*/*"), ("", "text/plain")):
        url, headers = f"{gateway.base_url}{path}{query}", {"Accept": accept}
        async with gateway.session.get(url, headers=headers) as response:
            assert response.content_type == "text/plain"
            text = await response.text()
        assert '- call look {"place":"attic"}' in text
        assert '+ call look {"place":"cellar"}' in text
        assert '  call note {"text":"one"}' in text
        assert "total tokens" in text


async def test_comparison_of_large_turns_is_bounded_and_of_others_not_found(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    large = "\x1b[2J" + "ab\n" * 400_000
    turn = await run_three_steps(gateway, "Hello")
    await db.execute("UPDATE turns SET response = $1, prompt = $1", large)
    await db.execute("DELETE FROM turn_events")
    await db.execute(
        "UPDATE turns SET messages = jsonb_build_array(messages->0,"
        " jsonb_build_object('role', 'assistant', 'content', $1::text))",
        large,
    )
    path = f"/api/v1/turns/{turn['turn_id']}/compare/{turn['turn_id']}"
    async with gateway.session.get(f"{gateway.base_url}{path}") as response:
        body = await response.read()
    assert len(body) < 1024 * 1024
    assert b'"truncated":true' in body
    async with gateway.session.get(f"{gateway.base_url}{path}?format=text") as response:
        text = await response.text()
    assert len(text) < 1024 * 1024
    assert "\x1b" not in text
    await db.execute("UPDATE turns SET owner = 'bob'")
    assert (await gateway.get(path)).status == 404
