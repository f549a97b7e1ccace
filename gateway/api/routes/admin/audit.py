"""`/api/v1/audit`: the audit log, for admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gateway.api.deps import AuditChainDep, AuditLogDep, PrincipalDep
from gateway.domain.messages import JsonObject

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

ActorFilter = Annotated[
    str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only actions of this user.")
]
ActionFilter = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only this action.")]


class AuditView(BaseModel):
    """Entry of the audit log.

    `action` is one of key.create, key.rotate, key.revoke, login.refused, login.granted, login.failed,
    login.forgotten, server.put, server.remove, tool.approve, instructions.approve, input.accept, input.decline,
    input.cancel, conversation.delete, turn.delete, turn.cancel, turn.watch, user.erase, user.export,
    secrets.reencrypt, definition.create, definition.change, definition.test, definition.publish, definition.delete
    and definition.import.
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
    page = await audit_log.list_entries(limit=limit, before=before, actor=actor, action=action)
    views = [AuditView.model_validate(row, from_attributes=True) for row in page.items]
    return AuditList(items=views, next=views[-1].id if page.has_more else None)


@router.get(
    "/export",
    summary="Export the audit log",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}}},
)
async def export_audit(
    _principal: PrincipalDep,
    chain: AuditChainDep,
    after: Annotated[int, Query(ge=0, le=2**62, description="Number of the last entry of the previous export.")] = 0,
) -> StreamingResponse:
    """All entries as JSON lines, oldest first.

    Each line has `entry`, its `hash`, and the `previous` hash, which it covers. `agent-gateway audit verify` finds
    changed and missing entries.
    """
    return StreamingResponse(chain.export_lines(after), media_type="application/x-ndjson")
