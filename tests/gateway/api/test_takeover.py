"""Events that clients have seen before another worker takes over."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import msgspec
import pytest

from gateway.simulator import Fault, Simulator
from tests.gateway.api.test_turns import follow_turn, join_text, read_turn_events
from tests.stack import Event, Gateway, serve_gateway

RULES = Path(__file__).parent.parent.parent.parent / "docs" / "redaction.toml"
TURN_ID = "01a1fc00-0000-7000-8000-000000000002"
STARTED = {"type": "turn.started", "turn_id": TURN_ID, "conversation_id": None, "model": "openai/gpt-oss-120b"}
DELTA = {"type": "text.delta", "step": 1, "text": "half an ans"}
CALL = {"type": "tool.call", "step": 1, "call_id": "c1", "server": "tools", "tool": "list_tasks", "arguments": {}}
COMPLETED = {"type": "step.completed", "step": 1, "finish_reason": "stop", "usage": {"total_tokens": 5}}
RESULT = {"type": "tool.result", "call_id": "c1", "outcome": "ok", "content": [{"type": "text", "text": "none"}]}


@pytest.mark.parametrize(
    ("prompt", "kinds", "stall"),
    [
        ("count to 300", ["text.delta"], Fault(kind="stall", after_chunks=30)),
        ("Add a task to buy milk", ["tool.result", "text.delta"], Fault(kind="stall", after_chunks=17, skip=1)),
    ],
    ids=["first step", "second step"],
)
async def test_client_that_reconnects_after_a_stop_assembles_the_stored_text_with_redaction_rules(
    database_url: str,
    simulator: Simulator,
    tools_url: str,
    db: asyncpg.Connection,
    prompt: str,
    kinds: list[str],
    stall: Fault,
) -> None:
    """With redaction rules, nothing of a text is stored before its end.

    The answer stops in its midst, so that the worker stops before its end.
    """
    simulator.faults.add_faults(msgspec.structs.replace(stall))
    async with AsyncExitStack() as stack:
        first_worker, second_worker = [
            await stack.enter_async_context(
                serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5, redaction_rules=RULES)
            )
            for _ in range(2)
        ]
        async with first_worker.stream(prompt, on_disconnect="continue") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            for kind in kinds:
                await stream.read_until(kind)
            await first_worker.state.stop(0)
            await stream.read_until("stream.closing")
        seen = [event for event in stream.received_events if event.id is not None]
        after = str(seen[-1].id)
        events = seen + await read_turn_events(second_worker, turn_id, params={"after": after})
    assert [event.data["discard"] for event in events if event.type == "model.retry"] == [True]
    row = await db.fetchrow("SELECT status, response FROM turns WHERE id = $1::uuid", turn_id)
    assert row is not None
    assert tuple(row) == ("completed", join_text(events))


@pytest.mark.parametrize(
    ("events", "discarded"),
    [
        ([STARTED], 1),
        ([STARTED, DELTA], 1),
        ([STARTED, CALL], 1),
        ([STARTED, CALL, COMPLETED], None),
        ([STARTED, CALL, COMPLETED, RESULT], 2),
        ([STARTED, DELTA, COMPLETED], None),
    ],
    ids=["no step", "text", "open step", "open call", "finished call", "answer"],
)
async def test_takeover_discards_the_step_whose_model_call_may_have_been_in_progress(
    gateway: Gateway, db: asyncpg.Connection, events: list[dict[str, object]], discarded: int | None
) -> None:
    """Start with the rows of a worker that crashed."""
    replayed = await take_over(gateway, db, events)
    retries = [event for event in replayed if event.type == "model.retry"]
    assert [(event.data["step"], event.data["discard"]) for event in retries] == (
        [(discarded, True)] if discarded else []
    )
    if retries:
        assert ("usage" in retries[0].data) == (events[-1] in (DELTA, CALL))
        assert retries[0].id == len(events) + 10_000
    row = await db.fetchrow("SELECT status, response FROM turns")
    assert row is not None
    assert tuple(row) == ("completed", join_text(replayed))


async def test_cancelled_turn_is_discarded_as_well_when_it_is_taken_over(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    replayed = await take_over(gateway, db, [STARTED, DELTA], cancel=True)
    assert [event.type for event in replayed[-3:]] == ["model.retry", "turn.cancelled", None]
    assert await db.fetchval("SELECT response FROM turns") == "" == join_text(replayed)


async def take_over(
    gateway: Gateway, db: asyncpg.Connection, events: list[dict[str, object]], *, cancel: bool = False
) -> list[Event]:
    """Store a running turn without a worker.

    Return its events at its end.
    """
    async with db.transaction():
        await db.execute(
            "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, cancel_requested)"
            " VALUES ($1::uuid, 'local', 'running', 'x', $2::jsonb, 'openai/gpt-oss-120b', '{}', '{}', $3)",
            TURN_ID,
            json.dumps([{"role": "user", "content": "Hello"}]),
            cancel,
        )
        payload = "\n".join(map(json.dumps, events))
        await db.execute("INSERT INTO turn_events VALUES ($1::uuid, 1, $2, $3)", TURN_ID, len(events), payload)
    async with asyncio.timeout(30), follow_turn(gateway, TURN_ID) as stream:
        return [event async for event in stream.read_events()]
