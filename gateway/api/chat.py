"""`/api/v1/chat`: one user request in, one turn out, streamed or collected."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from gateway.agent.following import Reading
from gateway.agent.runner import RunningTurn
from gateway.api.deps import PrincipalDep, State, StateDep, unless_disconnected
from gateway.api.errors import ErrorBody
from gateway.api.limits import check_size
from gateway.api.turns import following
from gateway.errors import Conflict, ServerStopping, error_of
from gateway.events import Entry, TurnCancelled, TurnCompleted, TurnFailed
from gateway.log import request_id
from gateway.messages import Parameters, Principal
from gateway.store.tables import Turn
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
IdempotencyKey = Annotated[
    str | None,
    Header(max_length=200, description="A key begins a turn once; again, it is answered with that turn."),
]
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
async def chat_stream(
    body: ChatRequest,
    request: Request,
    principal: PrincipalDep,
    state: StateDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a turn and stream its events.

    A failure before the model's first output is an HTTP status; after that it is a `turn.failed` event. With an
    `Idempotency-Key` that has begun a turn before, that turn is followed from its first event.
    """
    turn = await _begin(body, request, principal, state, idempotency_key)
    if isinstance(turn, Turn):
        return following(state, turn)
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
    body: ChatRequest,
    request: Request,
    response: Response,
    principal: PrincipalDep,
    state: StateDep,
    idempotency_key: IdempotencyKey = None,
) -> ChatResponse:
    """Run a turn and answer with all of it at its end; an `Idempotency-Key` seen before answers with its turn."""
    turn = await _begin(body, request, principal, state, idempotency_key)
    reading = state.following.open(turn.id, kept=turn.store) if isinstance(turn, Turn) else Reading(turn.log)
    try:
        collector = await unless_disconnected(request, _collect(reading.log.follow()))
    finally:
        reading.close()
        if isinstance(turn, RunningTurn):
            turn.leave()
    response.headers["X-Turn-Id"] = request.state.turn_id
    match collector.end:
        case TurnCompleted():
            return collector.response()
        case TurnFailed() | TurnCancelled() as end:
            failure = turn.failure if isinstance(turn, RunningTurn) else None
            raise failure or error_of(end.error)
        case None if collector.waits:
            return collector.response()
        case None:
            raise ServerStopping


async def _begin(
    body: ChatRequest, request: Request, principal: Principal, state: State, key: str | None
) -> RunningTurn | Turn:
    """A new turn; or the one that the key has begun before."""
    settings = state.settings
    defaults = Parameters(
        temperature=settings.groq_temperature,
        top_p=settings.groq_top_p,
        max_tokens=settings.groq_max_tokens,
        reasoning_effort=settings.groq_reasoning_effort,
    )
    turn_request = body.value(default_model=settings.groq_default_model, defaults=defaults, idempotency_key=key)
    check_size(turn_request, most_messages=settings.max_messages, most_chars=settings.max_message_chars)
    if key is not None and (known := await state.turns.find(principal.user, key)) is not None:
        request.state.turn_id = str(known.id)
        return known
    try:
        turn = await state.runner.start(turn_request, principal, request_id.get())
    except Conflict:
        known = await state.turns.find(principal.user, key) if key is not None else None
        if known is None:
            raise
        request.state.turn_id = str(known.id)
        return known
    turn.join()
    request.state.turn_id = str(turn.id)
    return turn


async def _collect(batches: AsyncIterator[list[Entry]]) -> Collector:
    collector = Collector()
    async for batch in batches:
        for entry in batch:
            collector.take(entry.event)
    return collector
