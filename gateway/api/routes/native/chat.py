"""`/api/v1/chat`: run a turn for a user request, streamed or collected."""

from functools import partial

from fastapi import APIRouter, Request, Response

from gateway.agent.service import TurnHandle
from gateway.api.deps import get_principal
from gateway.api.http.errors import ErrorBody
from gateway.api.turn_responses import (
    GatewayToolsHeader,
    IdempotencyKey,
    start_native_turn,
    stream_turn,
    turn_headers,
    wait_for_turn,
)
from gateway.domain.messages import JsonObject
from gateway.wire.native import ChatRequest, ChatResponse, build_chat_response, stream_events

router = APIRouter(prefix="/api/v1", tags=["chat"])

_ERRORS: dict[int | str, JsonObject] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        404: "The model or conversation was not found",
        409: "Another turn of the conversation is active, and `if_busy` is `reject` or two minutes have passed",
        413: "The body is too large",
        422: "The request is invalid",
        429: "The model's rate limit is exceeded; see Retry-After",
        502: "The model's server failed or rejected the API key",
        503: "The database or the model cannot be reached, or the gateway is stopping",
        504: "The turn exceeded its time limit",
    }.items()
}
_TURN_ID_HEADER = {"X-Turn-Id": {"description": "Id of the turn", "schema": {"type": "string"}}}


@router.post(
    "/chat/stream",
    summary="Run a turn and stream its events",
    response_class=Response,
    responses={
        **_ERRORS,
        200: {
            "description": "The turn's events as server-sent events, followed by `data: [DONE]`",
            "content": {"text/event-stream": {}},
            "headers": _TURN_ID_HEADER,
        },
    },
)
async def chat_stream(
    body: ChatRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a turn and stream its events.

    A failure before the model's first output is an HTTP error; a later failure is a `turn.failed` event. A repeated
    `Idempotency-Key` streams the earlier turn from its first event. With `stream` false, the answer is that of
    `/api/v1/chat`.
    """
    turn = await _start(body, request, x_gateway_tools, idempotency_key)
    return await _answer(turn, request, streams=body.stream is not False)


@router.post("/chat", summary="Run a turn and return its answer", responses=_ERRORS, response_model=ChatResponse)
async def chat(
    body: ChatRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a turn and return its answer.

    The response comes when the turn has ended, or when it waits for a person. A repeated `Idempotency-Key` returns the
    earlier turn. With `stream` true, the answer is that of `/api/v1/chat/stream`.
    """
    turn = await _start(body, request, x_gateway_tools, idempotency_key)
    return await _answer(turn, request, streams=body.stream is True)


async def _start(body: ChatRequest, request: Request, tools: str | None, idempotency_key: str | None) -> TurnHandle:
    principal = get_principal(request)
    return await start_native_turn(body, request, principal, tools_header=tools, idempotency_key=idempotency_key)


async def _answer(turn: TurnHandle, request: Request, *, streams: bool) -> Response:
    if streams:
        return stream_turn(turn, request, partial(stream_events, turn.id_text))
    answer = build_chat_response(await wait_for_turn(turn, request)).model_dump_json(by_alias=True)
    return Response(answer, media_type="application/json", headers=turn_headers(turn))
