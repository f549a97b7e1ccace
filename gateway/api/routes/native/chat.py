"""`/api/v1/chat`: one user request in, one turn out, streamed or collected."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from gateway.agent.service import TurnHandle
from gateway.api.deps import get_principal
from gateway.api.http.errors import ErrorBody
from gateway.api.turn_responses import start_turn, stream_turn, wait_for_turn
from gateway.domain.messages import JsonObject
from gateway.wire.native import ChatRequest, ChatResponse, build_chat_response, stream_events

router = APIRouter(prefix="/api/v1", tags=["chat"])

_ERRORS: dict[int | str, JsonObject] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        404: "No such model or conversation",
        409: "Another turn of the conversation runs, and `if_busy` is `reject`",
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
            "content": {"text/event-stream": {}},
            "headers": _TURN_ID,
        },
    },
)
async def chat_stream(
    body: ChatRequest,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a turn and stream its events.

    A failure before the model's first output is an HTTP status; after that it is a `turn.failed` event. With an
    `Idempotency-Key` that has begun a turn before, that turn is followed from its first event.
    """
    turn = await _start_turn(body, request, idempotency_key)
    return stream_turn(turn, request, partial(stream_events, str(turn.id)))


@router.post("/chat", summary="Chat, in one answer", responses=_ERRORS)
async def chat(
    body: ChatRequest,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ChatResponse:
    """Run a turn and answer with all of it at its end; an `Idempotency-Key` seen before answers with its turn."""
    turn = await _start_turn(body, request, idempotency_key)
    return build_chat_response(await wait_for_turn(turn, request, response))


async def _start_turn(body: ChatRequest, request: Request, idempotency_key: str | None) -> TurnHandle:
    turn_request = body.to_turn_request(idempotency_key=idempotency_key)
    return await start_turn(turn_request, request, get_principal(request), if_busy=body.if_busy)
