"""`/api/v1/turns`: get, follow, answer, cancel and rate turns, on any worker."""

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from gateway.api.deps import PrincipalDep, QuestionsDep, TurnContentsDep, TurnsDep, TurnServiceDep, UsageDep
from gateway.api.http.errors import ErrorBody
from gateway.api.http.json_lists import build_list_response
from gateway.api.turn_responses import stream_turn
from gateway.domain.messages import Answer, JsonObject, Principal
from gateway.store.lists.turn_contents import TurnContentStore
from gateway.store.questions import QuestionStore
from gateway.store.turns import TurnStore
from gateway.wire.native import stream_events
from gateway_runtime.requests.model import RequestModel

router = APIRouter(prefix="/api/v1/turns", tags=["turns"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "The turn was not found"}}


class ToolCallView(BaseModel):
    """Tool call of a turn.

    `outcome` is null until the call has ended. `source` is `recorded`, `replaced` or `not_run` if the tool was not
    called by this turn, which is a fork or replay.
    """

    call_id: str
    step: int
    server: str | None
    tool: str
    arguments: object
    outcome: str | None
    content: object
    structured: object
    started_at: datetime
    duration_ms: float | None
    source: str | None


class InputView(BaseModel):
    """Question of a turn, and its answer if it was answered."""

    id: UUID
    call_id: str
    question: JsonObject
    answer: JsonObject | None


class TurnView(BaseModel):
    """Stored turn.

    `status` is running, waiting (for a person), completed, failed or cancelled. A turn with `store` false has usage
    figures, but no text, messages or tool calls. `origin_id` is the turn that a fork or replay comes from.
    """

    id: UUID
    conversation_id: UUID | None
    parent_id: UUID | None
    origin_id: UUID | None
    is_replay: bool
    status: str
    store: bool
    model_name: str
    prompt: str
    response: str
    messages: list[object]
    parameters: JsonObject
    finish_reason: str | None
    usage: JsonObject | None
    cost_usd: float | None
    cached: bool
    steps: int
    error: JsonObject | None
    user_label: str | None
    created_at: datetime
    completed_at: datetime | None
    first_token_ms: float | None
    duration_ms: float | None
    tool_calls: list[ToolCallView] = []
    inputs: list[InputView] = []


class _TurnViewBuilder:
    """Builds responses of a turn.

    Its calls and questions are read as the client reads them.
    """

    def __init__(self, turns: TurnStore, contents: TurnContentStore, questions: QuestionStore) -> None:
        self._turns = turns
        self._contents = contents
        self._questions = questions

    async def build_response(self, turn_id: UUID, principal: Principal) -> Response:
        turn = TurnView.model_validate(await self._turns.get_turn(turn_id, principal), from_attributes=True)
        head = turn.model_dump_json(exclude={"tool_calls", "inputs"}).encode()
        lists = {"tool_calls": self._contents.iterate_calls(turn_id), "inputs": self._iterate_inputs(turn_id)}
        return await build_list_response(lists, head=head)

    async def _iterate_inputs(self, turn_id: UUID) -> AsyncIterator[JsonObject]:
        async for stored in self._questions.iterate_for_turn(turn_id):
            yield {"id": stored.id, "call_id": stored.call_id, "question": stored.question, "answer": stored.answer}


async def _resolve_view_builder(
    turns: TurnsDep, contents: TurnContentsDep, questions: QuestionsDep
) -> _TurnViewBuilder:
    return _TurnViewBuilder(turns, contents, questions)


TurnViewDep = Annotated[_TurnViewBuilder, Depends(_resolve_view_builder)]


@router.get("/{turn_id}", summary="Get a turn", responses=_NOT_FOUND, response_model=TurnView)
async def get_turn(turn_id: UUID, principal: PrincipalDep, view: TurnViewDep) -> Response:
    """The turn with its messages, tool calls and questions."""
    return await view.build_response(turn_id, principal)


@router.get(
    "/{turn_id}/events",
    summary="Follow a turn",
    response_class=Response,
    responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
)
async def follow_turn(
    turn_id: UUID,
    request: Request,
    principal: PrincipalDep,
    service: TurnServiceDep,
    after: Annotated[int | None, Query(ge=0, description="Number of the last event that the client received.")] = None,
    last_event_id: Annotated[
        str | None, Header(description="The same as `after`, as browsers send it when they reconnect.")
    ] = None,
) -> Response:
    """Stream the events after number `after`, and then new events.

    It works on any worker. The stream ends after the turn's last event. A disconnect does not affect the turn.
    """
    turn = await service.get_turn(turn_id, principal)
    last_seq = after if after is not None else int(last_event_id) if last_event_id and last_event_id.isdigit() else 0
    return stream_turn(turn, request, partial(stream_events, str(turn_id)), after=last_seq)


class AnswerBody(BaseModel):
    """Answer to a question.

    With the action `accept`, `content` must match the question's schema.
    """

    input_id: UUID
    action: Literal["accept", "decline", "cancel"]
    content: JsonObject | None = None


@router.post(
    "/{turn_id}/input",
    summary="Answer a turn's question",
    response_model=TurnView,
    responses={
        **_NOT_FOUND,
        409: {"model": ErrorBody, "description": "The question was already answered, or has expired"},
    },
)
async def answer_input(
    turn_id: UUID,
    body: AnswerBody,
    principal: PrincipalDep,
    service: TurnServiceDep,
    view: TurnViewDep,
) -> Response:
    """Answer, decline or cancel a turn's question or approval request.

    The turn continues on any worker: follow `/events` after the last event that you received. To approve a tool call
    with different arguments, accept with `content: {"arguments": {…}}`.
    """
    turn = await service.get_turn_to_answer(turn_id, principal)
    content = body.content if body.action == "accept" else None
    await service.answer_question(turn, body.input_id, Answer(body.action, content, by=principal.user))
    return await view.build_response(turn_id, principal)


@router.post("/{turn_id}/cancel", summary="Cancel a turn", responses=_NOT_FOUND, response_model=TurnView)
async def cancel_turn(turn_id: UUID, principal: PrincipalDep, service: TurnServiceDep, view: TurnViewDep) -> Response:
    """Cancel the model call and the tool calls of a turn.

    The text so far is stored. A turn that has ended does not change.
    """
    await service.cancel_turn(await service.get_turn(turn_id, principal))
    return await view.build_response(turn_id, principal)


class FeedbackBody(RequestModel):
    """Rating of a turn, with an optional comment."""

    rating: Literal["up", "down"]
    comment: str | None = Field(default=None, max_length=4_000)


class FeedbackView(BaseModel):
    """Stored rating of a turn."""

    turn_id: UUID
    rating: str
    comment: str | None
    at: datetime


@router.post("/{turn_id}/feedback", summary="Rate a turn", responses=_NOT_FOUND)
async def rate_turn(
    turn_id: UUID, body: FeedbackBody, principal: PrincipalDep, turns: TurnsDep, usage: UsageDep
) -> FeedbackView:
    """Rate a turn `up` or `down`.

    A new rating replaces the previous one. The comment is not stored for a turn with `store` false.
    """
    turn = await turns.get_turn(turn_id, principal)
    comment = body.comment.replace("\x00", "\ufffd") if body.comment and turn.store else None
    at = await usage.save_rating(turn_id, turn.owner, body.rating, comment)
    return FeedbackView(turn_id=turn_id, rating=body.rating, comment=comment, at=at)
