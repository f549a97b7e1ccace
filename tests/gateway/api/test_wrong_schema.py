"""Turns on a database whose schema does not fit the release."""

import asyncio
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import join_text, read_turn_events
from tests.stack import Gateway, Reply, serve_gateway

PROMPT_WITH_TOOL = "Add a task to rest"


async def is_ready(gateway: Gateway) -> bool:
    return (await gateway.get("/ready")).status == 200


def assert_internal_error(reply: Reply) -> None:
    """Check that the reply has no detail and suggests no retry."""
    error = reply.body["error"]
    assert reply.status == 500
    assert (error["code"] or error["type"]) in ("internal_error", "server_error", "api_error")
    assert "Retry-After" not in reply.headers
    text = str(reply.body).replace(reply.headers["X-Request-ID"], "")  # its digits may be those of a SQLSTATE
    assert not any(word in text for word in ("gone", "prompt", "SELECT", "column", "42703", "42P01"))


@pytest.mark.parametrize(
    ("fault", "repair", "sqlstate"),
    [
        ("ALTER TABLE turns RENAME COLUMN prompt TO gone", "ALTER TABLE turns RENAME COLUMN gone TO prompt", "42703"),
        ("ALTER TABLE turn_events RENAME TO gone", "ALTER TABLE gone RENAME TO turn_events", "42P01"),
    ],
    ids=["column", "table"],
)
async def test_wrong_schema_fails_readiness_and_new_turns_with_500_until_it_is_repaired(
    database_url: str, simulator: Simulator, db: asyncpg.Connection, fault: str, repair: str, sqlstate: str
) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        await eventually(lambda: is_ready(gateway))
        await db.execute(fault)
        ready = await gateway.get("/ready")
        assert (ready.status, ready.body["status"]) == (503, "unavailable")
        assert ready.body["database"]["reason"] == f"the database does not fit this release (SQLSTATE {sqlstate})"
        assert (await gateway.get("/health")).status == 200
        body: dict[str, Any]
        with capture_logs() as logs:
            for body in ({}, {"conversation_id": "new"}):
                assert_internal_error(await gateway.chat("Hello", **body))
                assert_internal_error(await gateway.chat_stream("Hello", **body))
            message = {"role": "user", "content": "Hello"}
            assert_internal_error(
                await gateway.post("/v1/chat/completions", {"model": "openai/gpt-oss-120b", "messages": [message]})
            )
        failures = [entry for entry in logs if entry["event"] == "database_statement_failed"]
        assert len(failures) >= 5
        assert all(entry["sqlstate"] == sqlstate and entry["exc_info"].__traceback__ for entry in failures)
        await db.execute(repair)
        await eventually(lambda: is_ready(gateway))
        assert (await gateway.chat("Hello", conversation_id="new")).status == 200
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 1


async def test_turn_whose_statement_is_wrong_fails_and_the_others_complete(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    await db.execute("ALTER TABLE tool_calls RENAME COLUMN arguments TO gone")
    reply, *others = await asyncio.gather(
        gateway.chat_stream(PROMPT_WITH_TOOL), *(gateway.chat(f"count to {number}") for number in range(5))
    )
    assert [other.status for other in others] == [200] * 5
    assert [event.type for event in reply.events[-2:]] == ["turn.failed", None]
    [failed] = reply.get_event_data("turn.failed")
    assert failed["error"]["code"] == "internal_error"
    assert "gone" not in str(failed)
    turn_id = reply.headers["x-turn-id"]
    row = await db.fetchrow("SELECT status, error->>'code' AS code FROM turns WHERE id = $1::uuid", turn_id)
    assert row is not None
    assert tuple(row) == ("failed", "internal_error")
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    assert join_text(await read_turn_events(gateway, turn_id)) == join_text(reply.events)


async def test_turn_whose_end_cannot_be_written_shows_no_end(gateway: Gateway, db: asyncpg.Connection) -> None:
    await db.execute("ALTER TABLE turn_usage RENAME COLUMN model_time TO gone")
    reply = await gateway.chat_stream("count to 3")
    assert not {"turn.completed", "turn.failed"} & {event.type for event in reply.events}
    [closing] = [event.data for event in reply.events if event.type == "stream.closing"]
    assert closing["reason"] == "internal_error"
    assert_internal_error(await gateway.chat("count to 3"))


async def test_budget_is_not_exceeded_because_it_cannot_be_reserved(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=1_000_000) as gateway:
        assert (await gateway.chat("Hello")).status == 200
        calls = len(simulator.requests)
        await db.execute("ALTER TABLE budget_holds RENAME COLUMN key TO gone")
        assert_internal_error(await gateway.chat("Hello"))
        assert len(simulator.requests) == calls
        await db.execute("ALTER TABLE budget_holds RENAME COLUMN gone TO key")
        assert (await gateway.chat("Hello")).status == 200
