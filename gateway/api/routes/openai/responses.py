"""`/v1/responses`: OpenAI's Responses API over turns."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from gateway.agent.subscriptions import Reading
from gateway.agent.turn import ActiveTurn
from gateway.api.deps import PrincipalDep, State, StateDep, principal_of, state_of, unless_disconnected
from gateway.api.turn_responses import answer_question, begin, defaults, following, stop_turn, streamed
from gateway.domain.errors import NotFound
from gateway.domain.events import Entry, TurnResumed
from gateway.domain.messages import Answer, JsonObject, Principal
from gateway.store.models import Turn
from gateway.wire.openai_response_items import Describe, ResponseWriter, stream
from gateway.wire.openai_responses import ResponseRequest, input_items, turn_of

router = APIRouter(prefix="/v1/responses", tags=["OpenAI"])

IdempotencyKey = Annotated[str | None, Header(max_length=200)]
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A `response`, or with `stream` its events as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@router.post("", summary="Create a response", response_class=JSONResponse, responses=_CONTENT)
async def create_response(
    body: ResponseRequest,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's Responses API. The gateway's tools show as MCP items; `tools` of type `mcp` choose among its servers.

    An `mcp_approval_response` goes on with the turn that asked: a new response, which is its next part.
    """
    state, principal = state_of(request), principal_of(request)
    if approvals := body.approvals:
        assert body.previous_response_id is not None
        turn_id, part = turn_of(body.previous_response_id, "previous_response_id")
        turn = await _approve(turn_id, {item.input_id: item.approve for item in approvals}, principal, state)
        return await _answer(turn, body, request, state, _writer(turn, state, part + 1))
    specs = tuple(spec for spec in state.toolbox.specs() if principal.may_use(spec))
    urls = {server.name: server.url for server in state.toolbox.servers()}
    value = body.value(
        default_model=state.settings.default_model, defaults=defaults(state), specs=specs, urls=urls,
        key=idempotency_key,
    )  # fmt: skip
    turn = await begin(value, request, principal, state, key=idempotency_key)
    echo = (turn.options.get("echo") if isinstance(turn, Turn) else value.echo) or {}
    return await _answer(turn, body, request, state, ResponseWriter(turn.id, Describe(echo, state.toolbox.find)))


@router.get("/{response_id}", summary="A response", response_class=JSONResponse, responses=_CONTENT)
async def get_response(
    response_id: str,
    principal: PrincipalDep,
    state: StateDep,
    stream_: Annotated[bool, Query(alias="stream")] = False,
    starting_after: Annotated[int, Query(ge=-1, description="The number of the last event that you have.")] = -1,
    _include: Annotated[list[str] | None, Query(alias="include[]")] = None,
) -> Response:
    """As it stands; or with `stream` its events, from the first or behind `starting_after`, as they come."""
    turn, writer = await _find(response_id, principal, state)
    if stream_:
        return following(turn, state, partial(stream, writer=writer, after=starting_after))
    return JSONResponse(await _as_it_stands(turn, writer, principal, state))


@router.get("/{response_id}/input_items", summary="What a response was asked")
async def list_input_items(response_id: str, principal: PrincipalDep, state: StateDep) -> JsonObject:
    turn, _ = await _find(response_id, principal, state)
    items = list(reversed(input_items(turn.id, turn.messages[: turn.sent_messages])))
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, "has_more": False, **ends}


@router.delete("/{response_id}", summary="Delete a response")
async def delete_response(response_id: str, principal: PrincipalDep, state: StateDep) -> JsonObject:
    """Delete the turn with all that is kept of it; one that runs is stopped first."""
    turn, _ = await _find(response_id, principal, state)
    await stop_turn(turn, state)
    await state.turns.delete(turn.id, by=principal.user)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", summary="Stop a response", response_class=JSONResponse)
async def cancel_response(response_id: str, principal: PrincipalDep, state: StateDep) -> Response:
    """Stop it, background or not; what was said so far is kept. One that has ended stays as it is."""
    turn, writer = await _find(response_id, principal, state)
    await stop_turn(turn, state)
    return JSONResponse(await _as_it_stands(turn, writer, principal, state))


async def _find(response_id: str, principal: Principal, state: State) -> tuple[Turn, ResponseWriter]:
    turn_id, part = turn_of(response_id)
    try:
        turn = await state.turns.get(turn_id, principal)
    except NotFound:
        raise NotFound(f"There is no response {response_id!r}.", param="response_id") from None
    return turn, _writer(turn, state, part)


def _writer(turn: Turn, state: State, part: int) -> ResponseWriter:
    return ResponseWriter(turn.id, Describe(turn.options.get("echo") or {}, state.toolbox.find), part)


async def _approve(turn_id: UUID, approvals: dict[UUID, bool], principal: Principal, state: State) -> Turn:
    turn = await state.turns.get(turn_id, principal)
    for input_id, approve in approvals.items():
        answer = Answer("accept" if approve else "decline", {} if approve else None, by=principal.user)
        await answer_question(turn.id, input_id, answer, state)
    return turn


async def _answer(
    turn: ActiveTurn | Turn, body: ResponseRequest, request: Request, state: State, writer: ResponseWriter
) -> Response:
    if body.stream:
        return streamed(turn, state, partial(stream, writer=writer))
    headers = {"X-Turn-Id": str(turn.id)}
    if body.background:
        if isinstance(turn, ActiveTurn):
            turn.leave()
            writer.write(turn.log.entries[0].event)
        return JSONResponse(writer.response(), headers=headers)
    reading = state.following.open(turn.id, kept=turn.store) if isinstance(turn, Turn) else Reading(turn.log)
    try:
        await unless_disconnected(request, _fold(reading.log.follow(), writer))
    finally:
        reading.close()
        if isinstance(turn, ActiveTurn):
            turn.leave()
    failure = turn.failure if isinstance(turn, ActiveTurn) else None
    if failure is not None and not writer.said_anything:
        raise failure  # still an HTTP status: nothing of an answer is lost with it
    if not writer.ended:
        writer.park()
    return JSONResponse(writer.response(), headers=headers)


async def _fold(batches: AsyncIterator[list[Entry]], writer: ResponseWriter) -> None:
    """Write all events, until the response ends; the turn may go on after it."""
    async for batch in batches:
        for entry in batch:
            if isinstance(entry.event, TurnResumed) and writer.begun:
                return
            writer.write(entry.event)
        if writer.ended:
            return


async def _as_it_stands(turn: Turn, writer: ResponseWriter, principal: Principal, state: State) -> JsonObject:
    """The response from the journal; from the turn itself where that has been forgotten."""
    if not turn.store:
        raise NotFound("This response was not stored.", param="response_id")
    turn = await state.turns.get(turn.id, principal)
    events = [entry.event for entry in await state.turns.journal(turn.id)]
    if not events and turn.completed_at is not None:
        events = await state.turns.rebuild_events(turn)
    for event in events:
        if isinstance(event, TurnResumed) and writer.begun:
            writer.park()
            break
        writer.write(event)
    if not writer.begun:
        raise NotFound("There is no such response.", param="response_id")
    if not writer.ended and turn.status == "waiting":
        writer.park()
    return writer.response()
