"""The append-only audit log of actors, actions and times.

A trigger forbids changes.
"""

from uuid import UUID

import uuid_utils.compat as uuids
from sqlmodel import col, select

from gateway.domain.messages import JsonObject
from gateway.store.database import Database
from gateway.store.models import AuditLog


def make_audit_entry(actor: str, action: str, subject: str, detail: JsonObject) -> AuditLog:
    """Build a row to add to a session."""
    return AuditLog(id=UUID(int=uuids.uuid7().int), actor=actor, action=action, subject=subject, detail=detail)


class AuditStore:
    """Repository of the audit log.

    Writes entries that belong to no other transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write_entry(self, actor: str, action: str, subject: str, detail: JsonObject) -> None:
        async with self._database.session() as session:
            session.add(make_audit_entry(actor, action, subject, detail))

    async def list_entries(
        self, *, limit: int, before: UUID | None = None, actor: str | None = None, action: str | None = None
    ) -> list[AuditLog]:
        """List entries, newest first.

        `before` is the id of the last entry of the previous page.
        """
        query = select(AuditLog)
        for value, column in ((actor, AuditLog.actor), (action, AuditLog.action)):
            if value is not None:
                query = query.where(column == value)
        if before is not None:
            query = query.where(AuditLog.id < before)
        async with self._database.session() as session:
            return list((await session.exec(query.order_by(col(AuditLog.id).desc()).limit(limit))).all())
