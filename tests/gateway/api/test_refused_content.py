"""Turns with content that the database refuses."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.gateway.api.test_turns import join_text, read_turn_events
from tests.stack import Gateway

PROMPT = "Add a task to buy milk"
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/api/v1/chat", {"messages": [{"role": "user", "content": PROMPT}]}),
    "native stream": ("/api/v1/chat/stream", {"messages": [{"role": "user", "content": PROMPT}]}),
    "chat completions": ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    "responses": ("/v1/responses", {"input": PROMPT}),
}


async def refuse(db: asyncpg.Connection, table: str, condition: str) -> None:
    """Let the database refuse rows that meet a condition."""
    await db.execute(f"ALTER TABLE {table} ADD CONSTRAINT refused CHECK (NOT coalesce({condition}, false)) NOT VALID")


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_request_with_refused_content_is_a_client_error_and_starts_nothing(
    gateway: Gateway, db: asyncpg.Connection, path: str, body: Any
) -> None:
    await refuse(db, "turns", "prompt LIKE '%milk%'")
    reply = await gateway.post(path, body)
    error = reply.body["error"]
    assert (reply.status, error["code"]) in ((422, "storage_refused"), (400, "storage_refused"))
    assert await db.fetchval("SELECT count(*) FROM turns") == 0
    assert gateway.state.turn_service.running_turns == 0


@pytest.mark.parametrize(
    ("table", "condition", "shown", "tasks"),
    [
        ("tool_calls", "arguments::text LIKE '%milk%'", [], 0),
        ("tool_calls", "content::text LIKE '%milk%'", ["tool.call", "step.completed"], 1),
    ],
    ids=["call", "result"],
)
async def test_turn_ends_as_failed_without_the_refused_content(
    gateway: Gateway, db: asyncpg.Connection, table: str, condition: str, shown: list[str], tasks: int
) -> None:
    await refuse(db, table, condition)
    reply = await gateway.chat_stream(PROMPT)
    types = [event.type for event in reply.events]
    assert [kind for kind in types if kind in ("tool.call", "step.completed", "tool.result")] == shown
    assert types[-2:] == ["turn.failed", None]
    assert reply.get_event_data("turn.failed")[0]["error"]["code"] == "storage_refused"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == tasks
    row = await db.fetchrow("SELECT status, error->>'code' AS code, response FROM turns")
    assert row is not None
    assert tuple(row) == ("failed", "storage_refused", join_text(reply.events))
    replayed = await read_turn_events(gateway, reply.headers["x-turn-id"])
    assert [event for event in reply.events if event.type not in ("text.delta", "reasoning.delta")] == [
        event for event in replayed if event.type not in ("text.delta", "reasoning.delta")
    ]
    assert join_text(replayed) == join_text(reply.events)


async def test_refused_answer_is_discarded_and_the_turn_ends_as_failed(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    await refuse(db, "turns", "response LIKE '%19 20%'")
    reply = await gateway.chat_stream("count to 20")
    assert [event.type for event in reply.events[-3:]] == ["model.retry", "turn.failed", None]
    assert "turn.completed" not in [event.type for event in reply.events]
    assert reply.get_event_data("turn.failed")[0] | {"error": None} == {
        "type": "turn.failed",
        "error": None,
        "saved": "prompt",
    }
    row = await db.fetchrow("SELECT status, error->>'code' AS code, response FROM turns")
    assert row is not None
    assert tuple(row) == ("failed", "storage_refused", "") == (*tuple(row)[:2], join_text(reply.events))
    assert await db.fetchval("SELECT total_tokens > 0 FROM turn_usage WHERE status = 'failed'")


async def test_turn_with_refused_content_does_not_affect_turns_of_the_same_commit(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    await refuse(db, "tool_calls", "arguments::text LIKE '%thing 7%'")
    replies = await asyncio.gather(*(gateway.chat(f"Add a task to do thing {number}") for number in range(20)))
    assert [reply.status for reply in replies] == [422 if number == 7 else 200 for number in range(20)]
    assert replies[7].body["error"]["code"] == "storage_refused"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 19
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 19
