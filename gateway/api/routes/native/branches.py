"""`/api/v1/turns/{turn_id}/fork`, `/replay` and `/compare`: what else a turn could have been."""

from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from gateway.api.deps import PrincipalDep, TurnsDep, get_principal, get_turn_service
from gateway.api.http.errors import ErrorBody
from gateway.api.turn_responses import IdempotencyKey, register_turn, stream_turn, turn_headers, wait_for_turn
from gateway.common.logging import request_id
from gateway.domain.branches import TurnBranch
from gateway.domain.messages import JsonObject, Principal
from gateway.store.turns import TurnStore
from gateway.wire.branches.bodies import ForkRequest, ReplayRequest
from gateway.wire.branches.comparison import ComparableTurn, TurnComparison, compare_turns
from gateway.wire.branches.comparison_text import format_comparison
from gateway.wire.native import ChatResponse, build_chat_response, stream_events
from gateway.wire.turn_summary import TurnSummary

router = APIRouter(prefix="/api/v1/turns", tags=["turns"])

_ERRORS: dict[int | str, JsonObject] = {
    404: {"model": ErrorBody, "description": "The turn or the model was not found"},
    409: {"model": ErrorBody, "description": "Only the usage of the turn is stored"},
    410: {"model": ErrorBody, "description": "The events of the turn are no longer stored"},
}
_CONTENT: JsonObject = {
    "description": "The answer, or with `stream` the turn's events as server-sent events",
    "content": {"text/event-stream": {}},
}


@router.post(
    "/{turn_id}/fork",
    summary="Fork a turn after one of its steps",
    responses={**_ERRORS, 200: _CONTENT},
    response_model=ChatResponse,
)
async def fork_turn(
    turn_id: UUID, body: ForkRequest, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Start a turn that begins with finished steps of another one.

    These steps are taken over from the journal: no model and no tool is called for them, and they cost nothing. They
    may belong to a turn that still runs. `results` replaces what tools said, and `message` adds a message of the user.
    The new turn is a branch of the same conversation, which later turns follow if it is the newest.
    """
    return await _answer(turn_id, body.to_branch(idempotency_key), request, streams=body.stream)


@router.post(
    "/{turn_id}/replay",
    summary="Replay a turn with its recorded tool results",
    responses={**_ERRORS, 200: _CONTENT},
    response_model=ChatResponse,
)
async def replay_turn(
    turn_id: UUID, body: ReplayRequest, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask another model, or with another prompt, with recorded tool results.

    A call with the same tool and equal arguments as one of the turn gets its result. With `on_new_call` `stop`, the
    replay ends at any other call with the finish reason `new_call`. Later turns of the conversation do not follow a
    replay, unless `parent_turn_id` names it.
    """
    return await _answer(turn_id, body.to_branch(idempotency_key), request, streams=body.stream)


@router.get(
    "/{turn_id}/compare/{other_id}",
    summary="Compare two turns",
    response_model=TurnComparison,
    responses={
        404: {"model": ErrorBody, "description": "One of the turns was not found"},
        200: {"description": "The comparison, as JSON or as text", "content": {"text/plain": {}}},
    },
)
async def compare_two_turns(
    turn_id: UUID,
    other_id: UUID,
    principal: PrincipalDep,
    turns: TurnsDep,
    format_: Annotated[
        Literal["json", "text"] | None,
        Query(alias="format", description="Default: `text` with the header `Accept: text/plain`, else `json`."),
    ] = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Compare two turns step by step.

    Texts, calls, arguments, tokens, cost and time stand side by side. Long texts are cut; `truncated` tells so. The
    text format is a table of the figures and a line diff of each step.
    """
    left, left_summary = await _load_side(turn_id, principal, turns)
    right, right_summary = await _load_side(other_id, principal, turns)
    comparison = compare_turns(left, left_summary, right, right_summary)
    if format_ == "text" or (format_ is None and accept.strip().lower().startswith("text/plain")):
        return Response(format_comparison(comparison), media_type="text/plain; charset=utf-8")
    return Response(comparison.model_dump_json(), media_type="application/json")


async def _load_side(turn_id: UUID, principal: Principal, turns: TurnStore) -> tuple[ComparableTurn, TurnSummary]:
    """Load a turn and the summary of its events.

    Without a journal, its row and its calls have the main events.
    """
    turn, summary = await turns.get_turn(turn_id, principal), TurnSummary()
    async for event in turns.iterate_events(turn):
        summary.apply(event)
    return ComparableTurn.model_validate(turn), summary


async def _answer(turn_id: UUID, branch: TurnBranch, request: Request, *, streams: bool) -> Response:
    turn = await get_turn_service(request).start_branch(
        turn_id, branch, get_principal(request), request_id=request_id.get()
    )
    register_turn(request, turn)
    if streams:
        return stream_turn(turn, request, partial(stream_events, turn.id_text))
    answer = build_chat_response(await wait_for_turn(turn, request)).model_dump_json(by_alias=True)
    return Response(answer, media_type="application/json", headers=turn_headers(turn))
