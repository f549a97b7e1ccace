"""`/api/v1/admin`: open turns of all users, workers and models, for admins."""

from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from gateway.api.deps import AuditLogDep, ModelDep, OperationsDep, PrincipalDep, TurnServiceDep
from gateway.api.http.errors import ErrorBody
from gateway.api.turn_responses import stream_turn
from gateway.domain.messages import JsonObject, Principal
from gateway.wire.native import stream_events

router = APIRouter(prefix="/api/v1/admin", tags=["operations"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "The turn was not found"}}


class OpenQuestionView(BaseModel):
    """Question that a turn waits for; its text is not shown.

    `kind` is approval, question, authorization or url. `server` and `tool` are those of the call that asks.
    """

    id: UUID
    kind: str
    server: str | None
    tool: str | None
    created_at: datetime
    expires_at: datetime


class OpenTurnView(BaseModel):
    """Turn that has not ended.

    The prompt and the answer are not shown. `status` is running, or waiting (for a person, who answers `questions`).
    `worker_id` is null until a worker takes the turn over.
    """

    id: UUID
    owner: str
    model: str
    status: str
    steps: int
    created_at: datetime
    worker_id: UUID | None
    conversation_id: UUID | None
    cancel_requested: bool
    questions: list[OpenQuestionView]


class OpenTurnList(BaseModel):
    """Page of open turns.

    `next` is the `before` of the next page; null on the last page.
    """

    items: list[OpenTurnView]
    next: UUID | None


class CancelledTurnView(BaseModel):
    """Turn whose cancellation is stored."""

    id: UUID
    owner: str


class WorkerView(BaseModel):
    """Gateway process that runs turns.

    Without a lease, other workers take its turns over.
    """

    id: UUID
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    has_lease: bool
    running_turns: int


class ModelStateView(BaseModel):
    """Circuit breaker of a model.

    `failures` counts the failures since the last success. While the breaker is open, calls fail at once, or use another
    model.
    """

    model: str
    failures: int
    is_open: bool
    retry_after_seconds: float


class WorkerList(BaseModel):
    """Workers, and the models that the worker that answers has called."""

    workers: list[WorkerView]
    models: list[ModelStateView]


@router.get("/turns/active", summary="List the open turns of all users")
async def list_open_turns(
    _principal: PrincipalDep,
    operations: OperationsDep,
    limit: Annotated[int, Query(ge=1, le=200, description="Maximum number of items in the page.")] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the previous page.")] = None,
) -> OpenTurnList:
    """The turns that run or wait for a person, newest first.

    Also shows which approvals and questions wait. Admins only.
    """
    turns = await operations.list_open_turns(limit=limit, before=before)
    views = [OpenTurnView.model_validate(turn, from_attributes=True) for turn in turns]
    return OpenTurnList(items=views, next=views[-1].id if len(views) == limit else None)


@router.get(
    "/turns/{turn_id}/events",
    summary="Watch a turn of any user",
    response_class=Response,
    responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
)
async def watch_turn(
    turn_id: UUID,
    request: Request,
    principal: PrincipalDep,
    operations: OperationsDep,
    service: TurnServiceDep,
    audit_log: AuditLogDep,
    after: Annotated[int, Query(ge=0, description="Number of the last event that the client received.")] = 0,
) -> Response:
    """Stream the events of a turn with its texts.

    The audit log gets an entry. A disconnect does not affect the turn. Admins only.
    """
    owner = await operations.get_owner(turn_id)
    turn = await service.get_turn(turn_id, Principal(owner))
    await _write_entry(audit_log, principal, "turn.watch", turn_id, owner)
    return stream_turn(turn, request, partial(stream_events, str(turn_id)), after=after)


@router.post("/turns/{turn_id}/cancel", summary="Cancel a turn of any user", responses=_NOT_FOUND)
async def cancel_any_turn(
    turn_id: UUID,
    principal: PrincipalDep,
    operations: OperationsDep,
    service: TurnServiceDep,
    audit_log: AuditLogDep,
) -> CancelledTurnView:
    """Cancel the model call and the tool calls of a turn.

    A turn that has ended does not change. The audit log gets an entry. Admins only.
    """
    owner = await operations.get_owner(turn_id)
    turn = await service.get_turn(turn_id, Principal(owner))
    await _write_entry(audit_log, principal, "turn.cancel", turn_id, owner)
    await service.cancel_turn(turn)
    return CancelledTurnView(id=turn_id, owner=owner)


@router.get("/workers", summary="List the workers")
async def list_workers(_principal: PrincipalDep, operations: OperationsDep, model: ModelDep) -> WorkerList:
    """The gateway processes, their turns, and the states of models. Admins only."""
    rows = await operations.list_workers()
    return WorkerList(
        workers=[WorkerView.model_validate(row, from_attributes=True) for row in rows],
        models=[ModelStateView.model_validate(state, from_attributes=True) for state in model.list_states()],
    )


async def _write_entry(log: AuditLogDep, principal: Principal, action: str, turn_id: UUID, owner: str) -> None:
    await log.write_entry(principal.user, action, f"turn {turn_id}", {"owner": owner})
