"""`/api/v1/webhooks/failures`: messages that could not be delivered."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, WebhooksDep
from gateway.domain.reading import get_reader_key

router = APIRouter(prefix="/api/v1", tags=["chat"])


class FailedMessageView(BaseModel):
    """Message that could not be delivered, with its last error."""

    id: UUID
    turn_id: UUID
    event: str
    url: str
    attempts: int
    error: str
    created_at: datetime
    failed_at: datetime


class FailedMessageList(BaseModel):
    """Messages that could not be delivered, newest first."""

    failures: list[FailedMessageView]


@router.get("/webhooks/failures", summary="List the webhook messages that could not be delivered")
async def list_failures(
    principal: PrincipalDep, webhooks: WebhooksDep, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> FailedMessageList:
    """Messages of your turns that failed in all attempts.

    They are listed for 30 days.
    """
    failures = await webhooks.list_failed(principal, get_reader_key(principal), limit)
    return FailedMessageList(failures=[FailedMessageView.model_validate(f, from_attributes=True) for f in failures])
