"""`/api/v1/audit`: the audit log, for admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import AuditLogDep, PrincipalDep
from gateway.domain.messages import JsonObject

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

ActorFilter = Annotated[
    str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only actions of this user.")
]
ActionFilter = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only this action.")]


class AuditView(BaseModel):
    """Entry of the audit log.

    `action` is one of key.create, key.rotate, key.revoke, login.refused, login.granted, login.failed, login.forgotten,
    server.put, server.remove, tool.approve, instructions.approve, input.accept, input.decline, input.cancel,
    conversation.delete, turn.delete, user.erase and user.export.
    `login.refused` is an invalid credential of a client; the other logins are sign-ins to MCP servers.
    """

    id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    detail: JsonObject


class AuditList(BaseModel):
    """Page of the audit log.

    `next` is the `before` of the next page; null on the last page.
    """

    items: list[AuditView]
    next: UUID | None


@router.get("", summary="Read the audit log")
async def list_audit(
    _principal: PrincipalDep,
    audit_log: AuditLogDep,
    limit: Annotated[int, Query(ge=1, le=200, description="Maximum number of items in the page.")] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the previous page.")] = None,
    actor: ActorFilter = None,
    action: ActionFilter = None,
) -> AuditList:
    """The newest entries first.

    A database trigger rejects changes and deletions.
    """
    rows = await audit_log.list_entries(limit=limit, before=before, actor=actor, action=action)
    views = [AuditView.model_validate(row, from_attributes=True) for row in rows]
    return AuditList(items=views, next=views[-1].id if len(views) == limit else None)
