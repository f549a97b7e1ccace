"""Questions that end or stay open without making their turn loop."""

import asyncio
from typing import Any

import asyncpg
import pytest
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from gateway.agent.transcript import Transcript
from gateway.domain.events import InputRequired, StepCompleted, ToolCallStarted, ToolFinished
from gateway.domain.messages import Usage, text_block
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.mcp_servers import SeatChoice, TrialServer
from tests.stack import serve_asgi, serve_gateway

FORM = {"type": "object", "properties": {"text": {"type": "string"}}}


@pytest.mark.parametrize("cancels", [True, False], ids=["cancelled", "left open"])
async def test_turn_ends_whose_server_stopped_waiting_for_its_question(
    database_url: str, simulator: Simulator, db: asyncpg.Connection, cancels: bool
) -> None:
    trial = TrialServer()
    asking: set[asyncio.Task[Any]] = set()

    async def impatient(ctx: Context[Any]) -> str:
        """Ask, and answer before the user does."""
        question = asyncio.ensure_future(ctx.elicit("Where?", SeatChoice))
        asking.add(question)
        await trial.release.wait()
        if cancels:
            question.cancel()
        return "nobody answered"

    trial.mcp.add_tool(impatient, structured_output=False)
    async with (
        serve_asgi(trial.create_app(modern=False)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
        gateway.stream("call impatient with {}") as stream,
    ):
        question = (await stream.read_until("input.required")).data
        trial.release.set()
        await stream.read_until("turn.completed")
        events = {event.type: (number, event.data) for number, event in enumerate(stream.received_events)}
        assert events["input.resolved"][0] < events["tool.result"][0]
        assert (events["input.resolved"][1]["action"], events["input.resolved"][1]["by"]) == ("cancel", "gateway")
        assert events["tool.result"][1]["content"][0]["text"] == "nobody answered"
        body = {"input_id": question["input_id"], "action": "accept", "content": {"row": "front"}}
        turn_id = stream.response.headers["x-turn-id"]
        assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 409
        assert await db.fetchval("SELECT answer->>'action' FROM turn_inputs") == "cancel"
        for task in asking:
            task.cancel()


def test_turn_that_looped_in_the_last_release_continues() -> None:
    """Apply its stored events: a question, and the result of its call."""
    transcript = Transcript()
    transcript.apply(ToolCallStarted(step=1, call_id="c", server="s", tool="t", arguments={}))
    transcript.apply(StepCompleted(step=1, finish_reason="tool_calls", usage=Usage()))
    question_id = "00000000-0000-0000-0000-000000000001"
    transcript.apply(
        InputRequired(input_id=question_id, call_id="c", kind="question", message="Where?", expires_at="2026-01-01")
    )
    assert transcript.waits_for_input
    transcript.apply(ToolFinished(call_id="c", outcome="ok", content=[text_block("nobody answered")]))
    assert (transcript.waits_for_input, transcript.open_calls()) == (False, [])


def create_app_with_two_questions() -> Any:
    mcp: MCPServer[Any] = MCPServer("asking", log_level="ERROR")

    @mcp.tool(structured_output=False)
    async def ask(ctx: Context[Any]) -> Any:
        """Ask two questions."""
        if ctx.input_responses:
            return f"{len(ctx.input_responses)} answers"
        params = [ElicitRequestFormParams(message=name, requested_schema=FORM) for name in ("one", "two")]
        return InputRequiredResult(input_requests={form.message: ElicitRequest(params=form) for form in params})

    return mcp.streamable_http_app()


async def test_turn_with_one_of_two_answers_waits_for_the_other(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    async with (
        serve_asgi(create_app_with_two_questions()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        async with gateway.stream("call ask with {}") as stream:
            questions = [(await stream.read_until("input.required")).data for _ in range(2)]
            turn_id = stream.response.headers["x-turn-id"]

        async def is_waiting() -> bool:
            status = await db.fetchval("SELECT status FROM turns")
            return status == "waiting" and not gateway.state.turn_service.running_turns

        async def answer(question: Any) -> None:
            await eventually(is_waiting)
            body = {"input_id": question["input_id"], "action": "accept", "content": {"text": "yes"}}
            assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200

        await answer(questions[0])
        await eventually(is_waiting)
        await answer(questions[1])
        async with asyncio.timeout(30):
            events = await read_turn_events(gateway, turn_id)
    types = [event.type for event in events]
    assert (types.count("turn.resumed"), types.count("input.resolved"), "turn.completed" in types) == (2, 2, True)
