"""`/api/v1/chat`: one user request in, one turn out, streamed or collected."""

from typing import Any

from fastapi import APIRouter, Request, Response

from gateway.agent.runner import RunningTurn
from gateway.api.deps import PrincipalDep, State, StateDep, unless_disconnected
from gateway.api.errors import ErrorBody
from gateway.api.limits import check_size
from gateway.errors import GatewayError, ServerStopping
from gateway.events import TurnCompleted
from gateway.log import request_id
from gateway.messages import Parameters, Principal
from gateway.wire.native import ChatRequest, ChatResponse, Collector, stream
from gateway.wire.sse import FrameStream

router = APIRouter(prefix="/api/v1", tags=["chat"])

FIRST_CHUNK_PATIENCE = 10.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        404: "No such model or conversation",
        413: "The body is too large",
        422: "The request is not valid",
        429: "The model's rate limit is reached; see Retry-After",
        502: "The model's server failed or refused the key",
        503: "The database or the model cannot be reached, or the gateway is stopping",
        504: "The turn took too long",
    }.items()
}
_TURN_ID = {"X-Turn-Id": {"description": "The turn's id", "schema": {"type": "string"}}}


@router.post(
    "/chat/stream",
    summary="Chat, streamed",
    response_class=Response,
    responses={
        **_ERRORS,
        200: {
            "description": "The turn's events as server-sent events, closed with `data: [DONE]`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "headers": _TURN_ID,
        },
    },
)
async def chat_stream(body: ChatRequest, request: Request, principal: PrincipalDep, state: StateDep) -> Response:
    """Run a turn and stream its events.

    A failure before the model's first output is an HTTP status; after that it is a `turn.failed` event.
    """
    turn = await _begin(body, request, principal, state)
    try:
        await unless_disconnected(request, turn.until_opened(FIRST_CHUNK_PATIENCE))
    except BaseException:
        turn.leave()
        raise
    turn_id = str(turn.id)
    frames = stream(turn_id, turn.log.follow(), lambda: turn.log.closing)
    return FrameStream(frames, headers={"X-Turn-Id": turn_id}, on_close=turn.leave)


@router.post("/chat", summary="Chat, in one answer", responses=_ERRORS)
async def chat(
    body: ChatRequest, request: Request, response: Response, principal: PrincipalDep, state: StateDep
) -> ChatResponse:
    """Run a turn and answer with all of it at its end."""
    turn = await _begin(body, request, principal, state)
    try:
        collector = await unless_disconnected(request, _collect(turn))
    finally:
        turn.leave()
    if not isinstance(collector.end, TurnCompleted):
        raise turn.failure or (ServerStopping() if turn.log.closing else GatewayError())
    response.headers["X-Turn-Id"] = str(turn.id)
    return collector.response()


async def _begin(body: ChatRequest, request: Request, principal: Principal, state: State) -> RunningTurn:
    settings = state.settings
    defaults = Parameters(
        temperature=settings.groq_temperature,
        top_p=settings.groq_top_p,
        max_tokens=settings.groq_max_tokens,
        reasoning_effort=settings.groq_reasoning_effort,
    )
    turn_request = body.value(default_model=settings.groq_default_model, defaults=defaults)
    check_size(turn_request, most_messages=settings.max_messages, most_chars=settings.max_message_chars)
    turn = await state.runner.start(turn_request, principal, request_id.get())
    turn.join()
    request.state.turn_id = str(turn.id)
    return turn


async def _collect(turn: RunningTurn) -> Collector:
    collector = Collector()
    async for batch in turn.log.follow():
        for entry in batch:
            collector.take(entry.event)
    return collector
