"""`/api/v1/audit`: who did what, for admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import AuditLogDep, PrincipalDep
from gateway.domain.messages import JsonObject

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

Wanted = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]


class AuditView(BaseModel):
    """`action`: key.create, key.revoke, login.refused, login.granted, login.failed, login.forgotten, server.put,
    server.remove, tool.approve, input.…, conversation.delete, turn.delete. A refused login is a
    caller's; the others are sign-ins to MCP servers."""

    id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    detail: JsonObject


class AuditList(BaseModel):
    """`next` is the `before` of the next page; null: this is the last."""

    items: list[AuditView]
    next: UUID | None


@router.get("", summary="Who did what")
async def list_audit(
    _principal: PrincipalDep,
    audit_log: AuditLogDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the page before.")] = None,
    actor: Wanted = None,
    action: Wanted = None,
) -> AuditList:
    """The newest first. Nothing can be changed or taken out of it, not even by the gateway."""
    rows = await audit_log.page(limit=limit, before=before, actor=actor, action=action)
    views = [AuditView.model_validate(row, from_attributes=True) for row in rows]
    return AuditList(items=views, next=views[-1].id if len(views) == limit else None)
