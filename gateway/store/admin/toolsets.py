"""Toolsets that were defined at run time."""

from sqlalchemy import delete, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select, text

from gateway.domain.bus import BusKind
from gateway.domain.errors import Conflict, ToolsetNotFound
from gateway.domain.messages import JsonObject
from gateway.ports.toolsets import ToolsetRepository
from gateway.store.audit import make_audit_entry
from gateway.store.bus import notify_at_commit
from gateway.store.database import Database, count_changed_rows
from gateway.store.tables.toolsets import ToolsetRow

_LOCK = text("LOCK TABLE toolsets IN SHARE ROW EXCLUSIVE MODE")
"""Serializes insertions, so that the limit holds. Readers do not wait."""


class ToolsetStore(ToolsetRepository):
    """Rows of `toolsets`. Each change notifies all workers in its transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_toolsets(self) -> dict[str, JsonObject]:
        """See `ToolsetRepository.list_toolsets`."""
        async with self._database.session() as session:
            rows = (await session.exec(select(ToolsetRow))).all()
        return {row.name: row.definition for row in rows}

    async def save_toolset(self, name: str, definition: JsonObject, *, is_new: bool, limit: int, by: str) -> None:
        """See `ToolsetRepository.save_toolset`."""
        values = {"definition": definition, "changed_by": by, "changed_at": func.now()}
        async with self._database.session() as session:
            if is_new:
                await (await session.connection()).execute(_LOCK)
                if (await session.exec(select(func.count()).select_from(ToolsetRow))).one() >= limit:
                    raise Conflict(f"There are {limit} toolsets already: remove one first.")
                insertion = insert(ToolsetRow).values(name=name, **values).on_conflict_do_nothing()
                if not await count_changed_rows(session, insertion):
                    raise Conflict(f"There is a toolset {name!r} already.", param="name")
            elif not await count_changed_rows(
                session, update(ToolsetRow).where(col(ToolsetRow.name) == name).values(**values)
            ):
                raise _make_not_found(name)
            session.add(make_audit_entry(by, "toolset.put", f"toolset {name}", definition))
            await notify_at_commit(session, BusKind.TOOLSETS_CHANGED)

    async def delete_toolset(self, name: str, *, by: str) -> None:
        """See `ToolsetRepository.delete_toolset`."""
        async with self._database.session() as session:
            if not await count_changed_rows(session, delete(ToolsetRow).where(col(ToolsetRow.name) == name)):
                raise _make_not_found(name)
            session.add(make_audit_entry(by, "toolset.remove", f"toolset {name}", {}))
            await notify_at_commit(session, BusKind.TOOLSETS_CHANGED)


def _make_not_found(name: str) -> ToolsetNotFound:
    return ToolsetNotFound(f"There is no toolset {name[:100]!r}.", param="toolset")
