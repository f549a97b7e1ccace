"""`/api/v1/admin/turns`: failed turns of all users, for admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, TurnsDep

router = APIRouter(prefix="/api/v1/admin", tags=["usage"])

ErrorFilter = Annotated[
    str | None, Query(max_length=100, pattern=r"^[a-z_]+$", description="Only turns that ended with this error code.")
]


class FailedTurnView(BaseModel):
    """Turn that ended with an error.

    `model` is the model in use, `steps` the number of stored steps. The prompt and the answer are not shown.
    """

    id: UUID
    at: datetime
    owner: str
    model: str
    error: str
    status: str
    steps: int
    conversation_id: UUID | None


class FailedTurnList(BaseModel):
    """Page of failed turns.

    `next` is the `before` of the next page; null on the last page.
    """

    items: list[FailedTurnView]
    next: UUID | None


@router.get("/turns", summary="List failed turns of all users")
async def list_failed_turns(
    _principal: PrincipalDep,
    turns: TurnsDep,
    error: ErrorFilter = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Maximum number of items in the page.")] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the previous page.")] = None,
) -> FailedTurnList:
    """The turns that ended last come first.

    `error=too_many_attempts` lists turns that were given up because their workers died or lost their lease again and
    again. Admins only.
    """
    rows = await turns.list_failed_turns(error, limit=limit, before=before)
    views = [FailedTurnView.model_validate(row, from_attributes=True) for row in rows]
    return FailedTurnList(items=views, next=views[-1].id if len(views) == limit else None)
