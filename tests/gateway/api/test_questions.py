"""Turns that wait for input: questions of servers, and approvals."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.messages import JsonObject
from gateway.ports.journal import EventSource
from gateway.simulator import Fault, Simulator
from gateway.store.journal.postgres_journal import PostgresJournal
from tests.conftest import count_lock_waits
from tests.eventually import eventually
from tests.gateway.api.test_turns import join_text, read_turn_events
from tests.stack import Event, Gateway, Reply, serve_gateway


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5) as gateway:
        yield gateway


async def send_answer(gateway: Gateway, turn_id: str, input_id: str, action: str, content: Any = None) -> Reply:
    body = {"input_id": input_id, "action": action, "content": content}
    return await gateway.post(f"/api/v1/turns/{turn_id}/input", body)


async def start_turn_with_approval(
    gateway: Gateway, prompt: str = "Add a task to buy milk"
) -> tuple[str, dict[str, Any]]:
    """Start a turn; return its id and its approval question."""
    reply = await gateway.chat_stream(prompt, approval="always")
    assert [event.type for event in reply.events][-2:] == ["input.required", "stream.closing"]
    assert reply.events[-1].data["reason"] == "input_required"
    return reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]


def get_only_event(events: list[Event], kind: str) -> Any:
    matches = [event.data for event in events if event.type == kind]
    assert len(matches) == 1, [event.type for event in events]
    return matches[0]


async def read_to_end(gateway: Gateway, turn_id: str) -> list[Event]:
    async with asyncio.timeout(30):
        return await read_turn_events(gateway, turn_id)


async def test_approval_describes_the_call_in_words(gateway: Gateway) -> None:
    calls = [{"name": "add_task", "arguments": json.dumps({"title": "O'Brien's milk", "description": "fresh"})}]
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls, match="Call it"))
    _, question = await start_turn_with_approval(gateway, "Call it")
    expected = """run with title "O'Brien's milk" and description "fresh"?"""
    assert question["message"].endswith(expected)
    gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[{"name": "list_tasks", "arguments": "{}"}], match="List them")
    )
    _, question = await start_turn_with_approval(gateway, "List them")
    assert question["message"].endswith("run without arguments?")


async def test_turn_waiting_for_approval_uses_no_worker(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    assert question["kind"] == "approval"
    assert "title" in question["schema"]["properties"]["arguments"]["properties"]
    await eventually(lambda: not gateway.state.turn_service.running_turns)
    row = await db.fetchrow("SELECT status, worker_id FROM turns WHERE id = $1::uuid", turn_id)
    assert row is not None
    assert tuple(row) == ("waiting", None)
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    view = (await gateway.get(f"/api/v1/turns/{turn_id}")).body
    assert (view["status"], view["inputs"][0]["answer"]) == ("waiting", None)


async def test_approved_call_runs_and_event_numbers_have_no_gap(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    assert (await send_answer(gateway, turn_id, question["input_id"], "accept")).status == 200
    events = await read_to_end(gateway, turn_id)
    assert [event.id for event in events[:-1]] == list(range(1, len(events)))
    resolved = get_only_event(events, "input.resolved")
    assert (resolved["action"], resolved["by"]) == ("accept", "local")
    assert get_only_event(events, "tool.result")["outcome"] == "ok"
    get_only_event(events, "turn.completed")
    assert await db.fetchval("SELECT title FROM tools.tasks") == "buy milk"
    assert await db.fetchval("SELECT response FROM turns") == join_text(events)


async def test_call_runs_with_the_arguments_of_its_approval(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    content = {"arguments": {"title": "buy oat milk"}}
    await send_answer(gateway, turn_id, question["input_id"], "accept", content)
    await read_to_end(gateway, turn_id)
    assert await db.fetchval("SELECT title FROM tools.tasks") == "buy oat milk"
    assert json.loads(await db.fetchval("SELECT arguments FROM tool_calls")) == {"title": "buy oat milk"}
    messages = json.loads(await db.fetchval("SELECT messages FROM turns"))
    assert json.loads(messages[1]["tool_calls"][0]["arguments"]) == {"title": "buy oat milk"}


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_denied_call_does_not_run_and_is_reported_to_the_model(
    gateway: Gateway, db: asyncpg.Connection, action: str
) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    await send_answer(gateway, turn_id, question["input_id"], action)
    events = await read_to_end(gateway, turn_id)
    assert get_only_event(events, "tool.result")["outcome"] == "denied"
    assert "did not allow" in gateway.simulator.requests[-1]["messages"][-1]["content"]
    get_only_event(events, "turn.completed")
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def test_approval_destructive_asks_only_for_destructive_calls(gateway: Gateway) -> None:
    added = await gateway.chat("Add a task to buy milk", approval="destructive")
    assert added.body["finish_reason"] == "stop"
    deleted = await gateway.chat("delete task 1", approval="destructive")
    assert (deleted.status, deleted.body["finish_reason"]) == (200, "input_required")
    assert deleted.body["inputs"][0]["kind"] == "approval"


async def test_server_approval_policy_overrides_the_request(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Any
) -> None:
    server_config = {"url": tools_url, "prefix": "", "identity": "gateway", "approval": "always"}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"tools": server_config}}))
    async with serve_gateway(database_url, simulator, None, mcp_config=tmp_path / "mcp.json") as gateway:
        reply = await gateway.chat("What is 23*19?", approval="never")
    assert reply.body["finish_reason"] == "input_required"


async def test_answer_is_validated_against_the_schema_and_accepted_once(gateway: Gateway) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    invalid = await send_answer(gateway, turn_id, question["input_id"], "accept", {"arguments": {"title": ""}})
    assert (invalid.status, invalid.body["error"]["param"]) == (422, "content.arguments.title")
    unknown = await send_answer(gateway, turn_id, "01890000-0000-7000-8000-000000000000", "accept")
    assert (unknown.status, unknown.body["error"]["code"]) == (404, "not_found")
    replies = await asyncio.gather(*(send_answer(gateway, turn_id, question["input_id"], "accept") for _ in range(5)))
    assert sorted(reply.status for reply in replies) == [200, 409, 409, 409, 409]
    await read_to_end(gateway, turn_id)


async def test_decision_is_recorded_in_the_append_only_audit_log(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    await send_answer(gateway, turn_id, question["input_id"], "decline")
    row = await db.fetchrow("SELECT actor, action, subject FROM audit_log")
    assert row is not None
    assert tuple(row) == ("local", "input.decline", f"turn {turn_id}")
    for change in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await db.execute(change)


async def test_unanswered_question_expires_and_the_turn_ends(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, _ = await start_turn_with_approval(gateway)
    await db.execute("UPDATE turn_inputs SET expires_at = now() - interval '1 second'")
    events = await read_to_end(gateway, turn_id)
    assert get_only_event(events, "input.resolved")["action"] == "expire"
    assert get_only_event(events, "tool.result")["outcome"] == "denied"
    assert await db.fetchval("SELECT actor FROM audit_log") == "gateway"


async def test_waiting_turn_can_be_cancelled(gateway: Gateway) -> None:
    turn_id, _ = await start_turn_with_approval(gateway)
    reply = await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
    assert reply.body["status"] == "cancelled"
    get_only_event(await read_to_end(gateway, turn_id), "turn.cancelled")


async def test_server_question_is_answered_after_a_gateway_restart(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    def start_gateway() -> Any:
        return serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5)

    async with start_gateway() as first_gateway:
        for title in ("Buy milk", "buy milk", "write"):
            await first_gateway.chat(f"Add a task to {title}")
        reply = await first_gateway.chat_stream("delete the task buy milk")
        turn_id, question = reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]
        assert question["kind"] == "question"
        assert "#1 [pending] Buy milk" in question["message"]
        assert question["schema"]["required"] == ["task_id"]
    async with start_gateway() as second_gateway:
        invalid = await send_answer(second_gateway, turn_id, question["input_id"], "accept", {"task_id": "two"})
        assert invalid.status == 422
        assert (
            await send_answer(second_gateway, turn_id, question["input_id"], "accept", {"task_id": 2})
        ).status == 200
        events = await read_to_end(second_gateway, turn_id)
    assert get_only_event(events, "tool.result")["structured"]["deleted"]["id"] == 2
    assert [row["id"] for row in await db.fetch("SELECT id FROM tools.tasks ORDER BY id")] == [1, 3]


async def test_declined_question_is_reported_to_the_server_and_the_model(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    for _ in range(2):
        await gateway.chat("Add a task to buy milk")
    reply = await gateway.chat_stream("delete the task buy milk")
    turn_id = reply.headers["x-turn-id"]
    await send_answer(gateway, turn_id, reply.get_event_data("input.required")[0]["input_id"], "decline")
    events = await read_to_end(gateway, turn_id)
    assert get_only_event(events, "tool.result")["outcome"] == "error"
    get_only_event(events, "turn.completed")
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 2


async def test_question_of_another_user_cannot_be_answered(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    await db.execute("UPDATE turns SET owner = 'another user'")
    assert (await send_answer(gateway, turn_id, question["input_id"], "accept")).status == 404


async def test_turn_resumes_among_ten_thousand_waiting_turns(gateway: Gateway, db: asyncpg.Connection) -> None:
    turn_id, question = await start_turn_with_approval(gateway)
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
        " SELECT gen_random_uuid(), 'local', 'waiting', 'x', '[]', 'm', '{}', '{}' FROM generate_series(1, 10000)"
    )
    await send_answer(gateway, turn_id, question["input_id"], "accept")
    get_only_event(await read_to_end(gateway, turn_id), "turn.completed")
    assert gateway.state.turn_service.running_turns == 0


async def test_turn_answered_before_it_is_suspended_is_followed_to_its_end(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended = asyncio.Event()
    wake = gateway.state.questions.wake_if_answered

    async def wake_after_suspension(turn_id: UUID, open_inputs: list[UUID]) -> bool:
        await suspended.wait()
        return await wake(turn_id, open_inputs)

    monkeypatch.setattr(gateway.state.questions, "wake_if_answered", wake_after_suspension)
    turn_id, question = await start_turn_with_approval(gateway)
    follower = asyncio.create_task(read_to_end(gateway, turn_id))
    assert (await send_answer(gateway, turn_id, question["input_id"], "accept")).status == 200
    get_only_event(await follower, "turn.completed")
    suspended.set()


def hold_suspension(monkeypatch: pytest.MonkeyPatch, until: asyncio.Event) -> None:
    suspend = PostgresJournal.suspend_turn

    async def suspend_late(journal: PostgresJournal, log: EventSource, open_inputs: list[UUID]) -> None:
        await until.wait()
        await suspend(journal, log, open_inputs)

    monkeypatch.setattr(PostgresJournal, "suspend_turn", suspend_late)


async def test_answer_that_is_stored_while_its_turn_is_suspended_continues_the_turn(
    gateway: Gateway, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_suspend = asyncio.Event()
    hold_suspension(monkeypatch, may_suspend)
    async with gateway.stream("Add a task to buy milk", approval="always", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["X-Turn-Id"]
        question = (await stream.read_until("input.required")).data
        async with db.transaction():
            await db.execute("LOCK TABLE audit_log IN SHARE MODE")  # holds the answer before its commit
            answer = asyncio.create_task(send_answer(gateway, turn_id, question["input_id"], "accept"))
            await eventually(lambda: count_lock_waits(db))
            may_suspend.set()

            async def is_suspending() -> bool:
                status = await db.fetchval("SELECT status FROM turns WHERE id = $1::uuid", turn_id)
                return status == "waiting" or await count_lock_waits(db) == 2

            await eventually(is_suspending)
        assert (await answer).status == 200
    get_only_event(await read_to_end(gateway, turn_id), "turn.completed")


async def test_turn_cancelled_while_it_is_suspended_ends(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    may_suspend = asyncio.Event()
    hold_suspension(monkeypatch, may_suspend)
    async with gateway.stream("Add a task to buy milk", approval="always", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["X-Turn-Id"]
        await stream.read_until("input.required")
        # As another worker does, whose message is lost.
        await gateway.state.turns.request_cancel(UUID(turn_id))
        may_suspend.set()

    async def is_cancelled() -> bool:
        return (await gateway.get(f"/api/v1/turns/{turn_id}")).body["status"] == "cancelled"

    await eventually(is_cancelled)


async def test_turn_that_asks_again_waits_for_the_second_answer(gateway: Gateway, db: asyncpg.Connection) -> None:
    calls: list[JsonObject] = [{"name": "calculator", "arguments": {"expression": "1+1"}}]
    gateway.simulator.faults.add_faults(*[Fault(kind="tool_calls", calls=calls) for _ in range(2)])
    turn_id, first = await start_turn_with_approval(gateway, "Calculate twice")
    await send_answer(gateway, turn_id, first["input_id"], "accept")

    async def get_second_question() -> str | None:
        turn = (await gateway.get(f"/api/v1/turns/{turn_id}")).body
        open_inputs = [question["id"] for question in turn["inputs"] if question["answer"] is None]
        return open_inputs[0] if turn["status"] == "waiting" and open_inputs else None

    second = await eventually(get_second_question)
    assert second is not None
    await send_answer(gateway, turn_id, second, "accept")
    get_only_event(await read_to_end(gateway, turn_id), "turn.completed")
    # Each answer causes one claim. The first one, already used, must not wake the turn while it waits for the second.
    assert await db.fetchval("SELECT epoch FROM turns WHERE id = $1::uuid", turn_id) == 2
