"""Turns with `store: false`: complete turns of which no text is stored."""

import asyncio
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import follow_turn, read_turn_events
from tests.stack import Event, Gateway, serve_gateway


async def dump_tables(db: asyncpg.Connection) -> str:
    """Return all rows of the gateway's tables as text."""
    tables = ["turns", "turn_events", "tool_calls", "turn_inputs", "conversations", "audit_log"]
    rows = [row for table in tables for row in await db.fetch(f"SELECT t::text AS row FROM {table} t")]
    return "\n".join(row["row"] for row in rows)


async def test_only_usage_figures_are_stored(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat_stream(
        "What is 23*19, zebra?", store=False, system="Speak of camels.", user="a label", tools=["calculator"]
    )
    assert reply.get_event_data("tool.result")[0]["structured"]["result"] == 437
    assert "437" in reply.text
    assert reply.is_done
    dump = await dump_tables(db)
    assert not [text for text in ("zebra", "camels", "a label", "calculator") if text in dump]
    row = await db.fetchrow("SELECT status, prompt, response, messages::text, steps, usage->>'total_tokens' FROM turns")
    assert row is not None
    assert tuple(row)[:5] == ("completed", "", "", "[]", 2)
    assert int(row[5]) == reply.get_event_data("turn.completed")[0]["usage"]["total_tokens"] > 0
    for table in ("turn_events", "tool_calls"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_turn_view_reports_store_false(gateway: Gateway) -> None:
    reply = await gateway.chat("What is 23*19?", store=False)
    turn_view = (await gateway.get(f"/api/v1/turns/{reply.headers['x-turn-id']}")).body
    assert (turn_view["store"], turn_view["status"], turn_view["prompt"], turn_view["messages"]) == (
        False,
        "completed",
        "",
        [],
    )


async def test_ephemeral_turn_can_be_followed_only_while_it_runs(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    gateway = workers[0]
    async with gateway.stream("count to 150", store=False) as stream:
        first_delta = await stream.read_until("text.delta")
        slow_simulator.pause_streams()
        turn_id = stream.response.headers["x-turn-id"]
        async with follow_turn(gateway, turn_id) as other:
            slow_simulator.resume_streams()
            followed_events = [event async for event in other.read_events()]
        streamed_events = stream.received_events + [event async for event in stream.read_events()]
    assert first_delta in followed_events
    assert followed_events == [event for n, event in enumerate(streamed_events) if event not in streamed_events[:n]]
    late_reply = await gateway.get(f"/api/v1/turns/{turn_id}/events")
    assert (late_reply.status, late_reply.body["error"]["code"]) == (409, "turn_not_kept")


async def test_ephemeral_turn_is_cancelled_from_another_worker(
    gateway: Gateway, database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with (
        serve_gateway(database_url, simulator, tools_url) as other,
        gateway.stream("count to 10000", store=False) as stream,
    ):
        await stream.read_until("text.delta")
        simulator.pause_streams()
        turn_id = stream.response.headers["x-turn-id"]
        follow_reply = await other.get(f"/api/v1/turns/{turn_id}/events")
        assert (follow_reply.status, follow_reply.body["error"]["code"]) == (409, "turn_not_kept")
        reply = await other.post(f"/api/v1/turns/{turn_id}/cancel", None)
        assert (await stream.read_until("turn.cancelled")).data["saved"] == "nothing"
        assert reply.body["status"] == "cancelled"


async def test_tool_call_that_needs_approval_is_denied(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat("Add a task to buy milk", store=False, approval="always")
    assert reply.body["finish_reason"] == "stop"
    assert reply.body["tool_calls"][0]["outcome"] == "denied"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def test_shutdown_cancels_an_ephemeral_turn_with_server_stopping(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    async with gateway.stream("count to 100000", store=False) as stream:
        await stream.read_until("text.delta")
        stopping = asyncio.create_task(gateway.state.stop(0))
        end = (await stream.read_until("turn.cancelled")).data
        await stopping
    assert (end["error"]["code"], end["saved"]) == ("server_stopping", "nothing")
    assert await db.fetchval("SELECT status FROM turns") == "cancelled"


async def test_ephemeral_turn_of_a_dead_worker_fails_with_turn_lost(
    gateway: Gateway, database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, worker_id) VALUES"
        " (gen_random_uuid(), 'local', 'running', '', '[]', 'openai/gpt-oss-20b', '{}', '{\"store\": false}',"
        " gen_random_uuid())"
    )
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.2):
        status = await eventually(lambda: db.fetchval("SELECT status FROM turns WHERE status <> 'running'"))
    assert status == "failed"
    assert await db.fetchval("SELECT error->>'code' FROM turns") == "turn_lost"


async def test_ephemeral_turn_can_read_a_conversation_but_not_start_one(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    rejection = await gateway.chat("Hello", store=False, conversation_id="new")
    assert rejection.status == 422
    assert "cannot start a conversation" in rejection.body["error"]["message"]
    started = await gateway.chat("My dog is called Bello.", conversation_id="new")
    conversation_id = started.body["conversation_id"]
    await gateway.chat("Hello again", store=False, conversation_id=conversation_id)
    assert "Bello" in str(gateway.simulator.requests[-1]["messages"])
    await gateway.chat("And again", conversation_id=conversation_id)
    assert "Hello again" not in str(gateway.simulator.requests[-1]["messages"])


@pytest.mark.parametrize("store", [True, False])
async def test_ephemeral_and_stored_turns_send_the_same_events(gateway: Gateway, store: bool) -> None:
    def get_first_types(events: list[Event]) -> list[Any]:
        return [(event.id, event.type) for event in events if event.type != "text.delta"][:6]

    stored = await gateway.chat_stream("What is 23*19?")
    second = await gateway.chat_stream("What is 23*19?", store=store)
    assert get_first_types(stored.events) == get_first_types(second.events)
    if store:
        assert await read_turn_events(gateway, second.headers["x-turn-id"]) == second.events
