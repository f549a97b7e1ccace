"""The audit log: who did what, when. A trigger keeps its rows as they are."""

from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids

from gateway.store.tables import AuditLog


def audit(actor: str, action: str, subject: str, detail: dict[str, Any]) -> AuditLog:
    """A row to add to a session."""
    return AuditLog(id=UUID(int=uuids.uuid7().int), actor=actor, action=action, subject=subject, detail=detail)
