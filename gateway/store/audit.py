"""The audit log: who did what, when. A trigger keeps its rows as they are."""

from uuid import UUID

import uuid_utils.compat as uuids
from sqlmodel import col, select

from gateway.domain.messages import JsonObject
from gateway.store.database import Database
from gateway.store.models import AuditLog


def make_audit_entry(actor: str, action: str, subject: str, detail: JsonObject) -> AuditLog:
    """A row to add to a session."""
    return AuditLog(id=UUID(int=uuids.uuid7().int), actor=actor, action=action, subject=subject, detail=detail)


class AuditStore:
    """The log, to write to alone and to read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write_entry(self, actor: str, action: str, subject: str, detail: JsonObject) -> None:
        async with self._database.session() as session:
            session.add(make_audit_entry(actor, action, subject, detail))

    async def list_entries(
        self, *, limit: int, before: UUID | None = None, actor: str | None = None, action: str | None = None
    ) -> list[AuditLog]:
        """The newest first; `before` is the last one of the page before."""
        query = select(AuditLog)
        for wanted, column in ((actor, AuditLog.actor), (action, AuditLog.action)):
            if wanted is not None:
                query = query.where(column == wanted)
        if before is not None:
            query = query.where(AuditLog.id < before)
        async with self._database.session() as session:
            return list((await session.exec(query.order_by(col(AuditLog.id).desc()).limit(limit))).all())
