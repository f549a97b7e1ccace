"""Inline elicitation: questions that legacy servers ask during a tool call."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import Gateway, Stream, serve_asgi, serve_gateway


@pytest.fixture
async def trial() -> TrialServer:
    return TrialServer()


@pytest.fixture
async def trial_url(trial: TrialServer) -> AsyncGenerator[str]:
    async with serve_asgi(trial.create_app(modern=False)) as url:
        yield f"{url}/mcp"


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, trial_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, trial_url, heartbeat_seconds=0.5) as gateway:
        yield gateway


@asynccontextmanager
async def reserve_seats(
    gateway: Gateway, *seats: int, **body: Any
) -> AsyncGenerator[tuple[Stream, list[dict[str, Any]]]]:
    """Start a turn that calls `reserve` for each number of seats.

    Yields its stream and its first question.
    """
    calls = [{"name": "reserve", "arguments": {"seats": number}} for number in seats]
    prompt = f"reserve {seats}"
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", match=prompt, calls=calls))
    async with gateway.stream(prompt, **body) as stream:
        yield stream, [(await stream.read_until("input.required")).data for _ in seats[:1]]


async def send_answer(
    gateway: Gateway, question: dict[str, Any], turn_id: str, action: str, content: Any = None
) -> int:
    body = {"input_id": question["input_id"], "action": action, "content": content}
    return (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status


async def test_answer_from_another_worker_reaches_the_waiting_call(
    gateway: Gateway, trial: TrialServer, database_url: str, trial_url: str
) -> None:
    async with (
        serve_gateway(database_url, gateway.simulator, trial_url) as other,
        reserve_seats(gateway, 2) as (stream, (question,)),
    ):
        turn_id = stream.response.headers["x-turn-id"]
        assert question["message"] == "Where shall the 2 seats be?"
        assert await send_answer(other, question, turn_id, "accept", {"row": "side"}) == 422
        assert await send_answer(other, question, turn_id, "accept", {"row": "front"}) == 200
        assert (await stream.read_until("input.resolved")).data["by"] == "local"
        result = (await stream.read_until("tool.result")).data
        await stream.read_until("turn.completed")
    assert result["content"][0]["text"] == "2 at the front"
    assert trial.answers == [(2, "accept")]


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_declined_answer_reaches_the_server(gateway: Gateway, trial: TrialServer, action: str) -> None:
    async with reserve_seats(gateway, 2) as (stream, (question,)):
        await send_answer(gateway, question, stream.response.headers["x-turn-id"], action)
        await stream.read_until("turn.completed")
    assert trial.answers == [(2, action)]


async def test_concurrent_questions_are_answered_per_turn(gateway: Gateway, trial: TrialServer) -> None:
    async with (
        reserve_seats(gateway, 1) as (first_stream, (first_question,)),
        reserve_seats(gateway, 2) as (second_stream, (second_question,)),
        reserve_seats(gateway, 3) as (third_stream, (third_question,)),
    ):
        questions = [(first_stream, first_question), (second_stream, second_question), (third_stream, third_question)]
        assert [question["message"][16:17] for _, question in questions] == ["1", "2", "3"]
        for stream, question in reversed(questions):
            await send_answer(gateway, question, stream.response.headers["x-turn-id"], "accept", {"row": "back"})
            await stream.read_until("turn.completed")
    assert trial.answers == [(3, "accept"), (2, "accept"), (1, "accept")]


async def test_turn_timeout_is_paused_while_a_question_is_open(gateway: Gateway) -> None:
    async with reserve_seats(gateway, 2) as (stream, (question,)):
        turn_id = stream.response.headers["x-turn-id"]
        turn = gateway.state.turn_service._runner.get(UUID(turn_id))
        await eventually(lambda: turn.deadline.is_paused)  # type: ignore[union-attr]
        assert await send_answer(gateway, question, turn_id, "accept", {"row": "front"}) == 200
        assert (await stream.read_until("tool.result")).data["outcome"] == "ok"
        await stream.read_until("turn.completed")


async def test_cancelled_turn_closes_its_question(gateway: Gateway, trial: TrialServer) -> None:
    async with reserve_seats(gateway, 2) as (stream, (question,)):
        turn_id = stream.response.headers["x-turn-id"]
        await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
        await stream.read_until("turn.cancelled")
    assert await send_answer(gateway, question, turn_id, "accept", {"row": "front"}) == 409
    assert not gateway.state.turn_service.running_turns


async def test_interrupted_call_with_a_question_is_not_repeated_after_a_takeover(
    gateway: Gateway, trial: TrialServer, database_url: str, trial_url: str, db: asyncpg.Connection
) -> None:
    async with reserve_seats(gateway, 2, on_disconnect="continue") as (stream, (question,)):
        turn_id = stream.response.headers["x-turn-id"]
        await gateway.state.stop(0)
    async with serve_gateway(database_url, gateway.simulator, trial_url, heartbeat_seconds=0.5) as other:
        async with asyncio.timeout(30):
            events = await read_turn_events(other, turn_id)
        assert await send_answer(other, question, turn_id, "accept", {"row": "front"}) == 409
    event_types = [event.type for event in events]
    assert event_types.count("input.resolved") == 1
    assert [event.data["outcome"] for event in events if event.type == "tool.result"] == ["unknown"]
    assert "turn.completed" in event_types
    assert await db.fetchval("SELECT answer->>'action' FROM turn_inputs") == "expire"
