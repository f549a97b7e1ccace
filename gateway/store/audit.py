"""The append-only audit log of actors, actions and times.

A trigger forbids changes.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids
from sqlmodel import col, select

from gateway.common.pages import Page
from gateway.domain.messages import JsonObject
from gateway.store.database import Database
from gateway.store.lists.byte_pages import build_page_query
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
    ) -> Page[AuditLog]:
        """List entries, newest first.

        `before` is the id of the last entry of the previous page. A page may end before `limit`, by its bytes.
        """
        conditions = {"actor = :actor": actor, "action = :action": action, "id < :before": before}
        used = {condition: value for condition, value in conditions.items() if value is not None}
        values: dict[str, Any] = {condition.rpartition(":")[2]: value for condition, value in used.items()}
        listed = f"SELECT ctid FROM audit_log {_build_where(used)} ORDER BY id DESC"  # noqa: S608
        statement = build_page_query(
            "audit_log", listed=listed, size="octet_length(t.detail::text)", columns="t.id", limit=":limit"
        )
        rows = await self._database.fetch_rows(statement, limit=limit, **values)
        query = select(AuditLog).where(col(AuditLog.id).in_([row[1] for row in rows]))
        async with self._database.session() as session:
            entries = list((await session.exec(query.order_by(col(AuditLog.id).desc()))).all())
        return Page(entries, bool(rows) and (len(rows) == limit or len(rows) < rows[0][0]))


def _build_where(conditions: Iterable[str]) -> str:
    joined = " AND ".join(conditions)
    return f"WHERE {joined}" if joined else ""
