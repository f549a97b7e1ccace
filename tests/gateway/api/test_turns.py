"""Durable turns: replay, following, cancellation, idempotency and takeover."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.stack import Event, Gateway, Stream


@asynccontextmanager
async def follow_turn(gateway: Gateway, turn_id: str, **options: Any) -> AsyncGenerator[Stream]:
    url = f"{gateway.base_url}/api/v1/turns/{turn_id}/events"
    async with gateway.session.get(url, **options) as response:
        assert response.status == 200, await response.text()
        yield Stream(response)


async def read_turn_events(gateway: Gateway, turn_id: str, **options: Any) -> list[Event]:
    async with follow_turn(gateway, turn_id, **options) as stream:
        return [event async for event in stream.read_events()]


def join_text(events: list[Event]) -> str:
    """Join the text of the last step, as clients do."""
    steps: dict[int, str] = {}
    for event in events:
        if event.type == "text.delta":
            steps[event.data["step"]] = steps.get(event.data["step"], "") + event.data["text"]
        elif event.type == "model.retry" and event.data["discard"]:
            steps.pop(event.data["step"], None)
    return steps[max(steps)] if steps else ""


async def test_finished_turn_is_replayed_exactly(gateway: Gateway) -> None:
    reply = await gateway.chat_stream("What is 23*19?")
    assert await read_turn_events(gateway, reply.headers["x-turn-id"]) == reply.events


async def test_follower_resumes_after_its_last_event(gateway: Gateway) -> None:
    reply = await gateway.chat_stream("What is 23*19?")
    turn_id = reply.headers["x-turn-id"]
    assert await read_turn_events(gateway, turn_id, params={"after": "3"}) == reply.events[3:]
    assert await read_turn_events(gateway, turn_id, headers={"Last-Event-ID": "5"}) == reply.events[5:]
    last = str(len(reply.events) - 1)
    assert await read_turn_events(gateway, turn_id, params={"after": last}) == [Event(None, None, "[DONE]")]


async def test_follower_on_another_worker_gets_all_events_live(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 150") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("text.delta")
        slow_simulator.pause_streams()
        async with follow_turn(second_worker, turn_id) as second_stream:
            await second_stream.read_until("text.delta")
            assert stream.received_events[-1].type == "text.delta"  # the turn was still running
            slow_simulator.resume_streams()
            first_events, second_events = await asyncio.gather(
                asyncio.create_task(read_to_end(stream)), asyncio.create_task(read_to_end(second_stream))
            )
    assert second_events == first_events


async def read_to_end(stream: Stream) -> list[Event]:
    async for _ in stream.read_events():
        pass
    return stream.received_events


async def test_reconnecting_follower_gets_exactly_the_journal(workers: list[Gateway]) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 100", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("text.delta")
    received: list[Event] = []
    for attempt in range(100):
        after = str(received[-1].id) if received else "0"
        async with follow_turn(
            (first_worker, second_worker)[attempt % 2], turn_id, params={"after": after}
        ) as follower:
            async for event in follower.read_events():
                if event.data == "[DONE]":
                    break
                received.append(event)
                if attempt < 99:
                    break
    assert [event.id for event in received] == list(range(1, len(received) + 1))
    assert received[-1].type == "turn.completed"
    assert received == (await read_turn_events(second_worker, turn_id))[:-1]


async def test_follower_disconnect_does_not_cancel_the_turn(workers: list[Gateway]) -> None:
    first_worker, _ = workers
    async with first_worker.stream("count to 60") as stream:
        async with follow_turn(first_worker, stream.response.headers["x-turn-id"]) as follower:
            await follower.read_until("text.delta")
            follower.response.close()
        await stream.read_until("turn.completed")


async def test_unknown_turn_is_a_404_and_an_invalid_id_a_422(gateway: Gateway) -> None:
    unknown = "01890000-0000-7000-8000-000000000000"
    for path in (f"/api/v1/turns/{unknown}", f"/api/v1/turns/{unknown}/events"):
        reply = await gateway.get(path)
        assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")
    assert (await gateway.post(f"/api/v1/turns/{unknown}/cancel", None)).status == 404
    assert (await gateway.get("/api/v1/turns/nonsense")).status == 422


async def test_turn_is_shown_with_its_response_and_tool_calls(gateway: Gateway) -> None:
    reply = await gateway.chat("What is 23*19?")
    body = (await gateway.get(f"/api/v1/turns/{reply.body['turn_id']}")).body
    assert (body["status"], body["prompt"], body["response"]) == ("completed", "What is 23*19?", reply.body["response"])
    call = body["tool_calls"][0]
    assert (call["tool"], call["outcome"], call["structured"]["result"]) == ("calculator", "ok", 437)


async def test_cancel_from_another_worker_stops_the_model_call_and_is_idempotent(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 5000") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("text.delta")
        cancelled = await second_worker.post(f"/api/v1/turns/{turn_id}/cancel", None)
        await stream.read_until("turn.cancelled")
        await slow_simulator.wait_until(lambda s: s.cancelled_streams == 1)
    assert (cancelled.body["status"], cancelled.body["error"]["code"]) == ("cancelled", "cancelled")
    assert cancelled.body["response"] == join_text(stream.received_events)
    repeated = await first_worker.post(f"/api/v1/turns/{turn_id}/cancel", None)
    assert (repeated.status, repeated.body) == (200, cancelled.body)


async def test_idempotency_key_starts_a_turn_once(gateway: Gateway, db: asyncpg.Connection) -> None:
    headers = {"Idempotency-Key": "k-1"}
    body = {"messages": [{"role": "user", "content": "Add a task to buy milk"}]}
    replies = await asyncio.gather(*(gateway.post("/api/v1/chat", body, headers=headers) for _ in range(5)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body["turn_id"] for reply in replies}) == 1
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1
    url = f"{gateway.base_url}/api/v1/chat/stream"
    async with gateway.session.post(url, json=body, headers=headers) as response:
        assert response.headers["x-turn-id"] == replies[0].body["turn_id"]
        assert (await read_to_end(Stream(response)))[-1].data == "[DONE]"


async def test_turn_of_a_stopped_worker_resumes_with_new_event_numbers(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 300", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("text.delta")
        await first_worker.state.stop(0)
        await stream.read_until("stream.closing")
    events = await read_turn_events(second_worker, turn_id)
    numbers = [event.id for event in events[:-1]]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    retry = next(event for event in events if event.type == "model.retry")
    assert (retry.data["reason"], retry.data["discard"]) == ("takeover", True)
    assert retry.id == numbers[numbers.index(retry.id) - 1] + 10_000  # type: ignore[operator]
    assert join_text(events).endswith("299 300 (simulated)")
    row = await db.fetchrow("SELECT status, response FROM turns WHERE id = $1::uuid", turn_id)
    assert row is not None
    assert tuple(row) == ("completed", join_text(events))


async def test_finished_steps_are_not_repeated_after_a_takeover(
    workers: list[Gateway], slow_simulator: Simulator, db: asyncpg.Connection
) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("Add a task to buy milk", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("tool.result")
        await first_worker.state.stop(0)
    events = await read_turn_events(second_worker, turn_id)
    assert events[-2].type == "turn.completed"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1
    assert len([event for event in events if event.type == "tool.call"]) == 1


@pytest.mark.parametrize(
    ("tool", "outcome", "tasks"), [("list_tasks", "ok", 0), ("add_task", "ok", 1), ("no_such_tool", "unknown", 0)]
)
async def test_call_interrupted_by_a_crash_is_repeated_only_if_idempotent(
    workers: list[Gateway], db: asyncpg.Connection, tool: str, outcome: str, tasks: int
) -> None:
    """Start with the rows of a worker that crashed.

    The worker died during a tool call.
    """
    first_worker, _ = workers
    turn_id = "01a1fc00-0000-7000-8000-000000000001"
    arguments = {"title": "buy milk"} if tool == "add_task" else {}
    journal = [
        {"type": "turn.started", "turn_id": turn_id, "conversation_id": None, "model": "openai/gpt-oss-120b"},
        {"type": "tool.call", "step": 1, "call_id": "c1", "server": "tools", "tool": tool, "arguments": arguments},
        {"type": "step.completed", "step": 1, "finish_reason": "tool_calls", "usage": {"total_tokens": 5}},
    ]
    message = [{"role": "user", "content": f"call {tool} with {json.dumps(arguments)}"}]
    payload = "\n".join(map(json.dumps, journal))
    async with db.transaction():  # a worker may claim the turn as soon as it sees its row
        await db.execute(
            "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
            " VALUES ($1::uuid, 'local', 'running', 'x', $2::jsonb, 'openai/gpt-oss-120b', '{}', '{}')",
            turn_id,
            json.dumps(message),
        )
        await db.execute("INSERT INTO turn_events VALUES ($1::uuid, 1, 3, $2)", turn_id, payload)
    events = await read_turn_events(first_worker, turn_id)
    result = next(event for event in events if event.type == "tool.result")
    assert (result.data["call_id"], result.data["outcome"]) == ("c1", outcome)
    assert events[-2].type == "turn.completed"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == tasks


async def test_cancellation_survives_the_stop_of_its_worker(workers: list[Gateway], db: asyncpg.Connection) -> None:
    first_worker, second_worker = workers
    async with first_worker.stream("count to 5000", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("text.delta")
        await db.execute("UPDATE turns SET cancel_requested = true")
        await first_worker.state.stop(0)
    events = await read_turn_events(second_worker, turn_id)
    assert events[-2].type == "turn.cancelled"


async def test_old_journals_are_pruned_and_their_turns_stay(gateway: Gateway, db: asyncpg.Connection) -> None:
    from datetime import timedelta

    reply = await gateway.chat("Hello")
    assert await gateway.state.turns.prune_journal(timedelta(days=1)) == 0
    await db.execute("UPDATE turns SET completed_at = now() - interval '2 days'")
    assert await gateway.state.turns.prune_journal(timedelta(days=1)) > 0
    events = await read_turn_events(gateway, reply.body["turn_id"])
    assert [event.type for event in events] == ["stream.closing"]
    assert events[0].data["reason"] == "journal_expired"
    assert (await gateway.get(f"/api/v1/turns/{reply.body['turn_id']}")).body["response"] == reply.body["response"]
