"""Defined tools in Postgres. Each change notifies all processes at its commit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tools_server.common.database import ToolsDatabase
from tools_server.http_tools.compiled import CompiledDefinition
from tools_server.http_tools.errors import DefinitionConflict, DefinitionNotFound
from tools_server.http_tools.models import HttpTool, HttpToolSecret

CHANNEL = "tool_definitions"
MAX_DEFINITIONS = 1_000
_LOCK_ID = 0x68747470
SecretKey = tuple[str, str]
"""Origin and name of a secret."""


@dataclass(frozen=True)
class StoredState:
    """The published definitions, and all encrypted secrets."""

    published: list[dict[str, Any]]
    secrets: dict[SecretKey, bytes]


@dataclass(frozen=True)
class DefinitionChange:
    """A definition to add or to change, and its source."""

    compiled: CompiledDefinition
    source: dict[str, Any] | None = None


class DefinitionStore:
    """Repository of definitions and secrets."""

    def __init__(self, database: ToolsDatabase) -> None:
        self._database = database

    async def get_version(self) -> tuple[object, ...]:
        """Return a value that differs after each change."""
        tools = select(func.count(), func.sum(HttpTool.revision), func.max(HttpTool.updated_at))
        secrets = select(func.count(), func.max(HttpToolSecret.updated_at))
        async with self._database.session(changes=False) as session:
            return (*(await session.exec(tools)).one(), *(await session.exec(secrets)).one())

    async def load_state(self) -> StoredState:
        """Load what is published."""
        published = select(HttpTool).where(col(HttpTool.published).is_not(None)).order_by(col(HttpTool.name))
        async with self._database.session(changes=False) as session:
            tools = (await session.exec(published)).all()
            rows = (await session.exec(select(HttpToolSecret))).all()
        return StoredState(
            [tool.published or {} for tool in tools], {(row.origin, row.name): row.value for row in rows}
        )

    async def replace_secrets(self, replace: Callable[[bytes], bytes | None]) -> tuple[int, list[SecretKey]]:
        """Replace all encrypted secrets.

        Return their number, and those for which `replace` returns None. Each row is locked meanwhile.
        """
        unreadable: list[SecretKey] = []
        async with self._database.session() as session:
            rows = (await session.exec(select(HttpToolSecret).with_for_update())).all()
            for row in rows:
                if (value := replace(row.value)) is None:
                    unreadable.append((row.origin, row.name))
                else:
                    row.value = value
                    session.add(row)
        return len(rows) - len(unreadable), unreadable

    async def list_tools(self) -> tuple[Sequence[HttpTool], set[SecretKey]]:
        """List all definitions by name, and the secrets that are set."""
        async with self._database.session(changes=False) as session:
            tools = (await session.exec(select(HttpTool).order_by(col(HttpTool.name)))).all()
            keys = (await session.exec(select(HttpToolSecret.origin, HttpToolSecret.name))).all()
        return tools, {(origin, name) for origin, name in keys}

    async def get_tool(self, name: str) -> tuple[HttpTool, dict[SecretKey, bytes]]:
        """Return a definition, and the secrets of its origins.

        Raises:
            DefinitionNotFound: there is none of this name.
        """
        async with self._database.session(changes=False) as session:
            tool = await self._find(session, name, lock=False)
            origins = [origin for origin in (tool.origin, tool.published_origin) if origin]
            rows = (await session.exec(select(HttpToolSecret).where(col(HttpToolSecret.origin).in_(origins)))).all()
        return tool, {(row.origin, row.name): row.value for row in rows}

    async def add(self, changes: Sequence[DefinitionChange], secrets: Mapping[SecretKey, bytes], by: str) -> None:
        """Add definitions.

        Raises:
            DefinitionConflict: a name is taken, or there would be too many.
        """
        async with self._database.session() as session:
            now = await self._lock(session)
            for change in changes:
                await self._insert(session, change, by, now)
            await self._finish(session, secrets, by, now)

    async def change(
        self, name: str, change: DefinitionChange, secrets: Mapping[SecretKey, bytes], by: str, revision: int
    ) -> None:
        """Replace a draft of this revision.

        Raises:
            DefinitionNotFound, DefinitionConflict: there is no such definition, or it has another revision.
        """
        async with self._database.session() as session:
            now = await self._lock(session)
            await self._replace(session, name, change, by, revision, now)
            await self._finish(session, secrets, by, now)

    async def publish(self, name: str, by: str, revision: int | None) -> HttpTool:
        """Publish the newest draft. Raises like `change`."""
        async with self._database.session() as session:
            now = await self._lock(session)
            tool = await self._find(session, name)
            if revision is not None and tool.revision != revision:
                raise _make_outdated(tool)
            _publish(tool, by, now)
            await self._finish(session, {}, by, now)
            return tool

    async def delete(self, name: str, by: str) -> None:
        """Delete a definition, and the secrets that no other one uses.

        Raises:
            DefinitionNotFound: there is none of this name.
        """
        async with self._database.session() as session:
            now = await self._lock(session)
            await session.delete(await self._find(session, name))
            await self._finish(session, {}, by, now)

    async def apply_import(
        self,
        added: Sequence[DefinitionChange],
        changed: Mapping[str, tuple[DefinitionChange, int]],
        removed: Iterable[str],
        secrets: Mapping[SecretKey, bytes],
        by: str,
        *,
        publish: bool,
    ) -> None:
        """Add, change, delete and publish in one transaction. Raises like `change`."""
        async with self._database.session() as session:
            now = await self._lock(session)
            for name in removed:
                await session.delete(await self._find(session, name))
            await session.flush()
            for change in added:
                await self._insert(session, change, by, now)
            for name, (change, revision) in changed.items():
                await self._replace(session, name, change, by, revision, now)
            if publish:
                for name in (*(change.compiled.definition.name for change in added), *changed):
                    _publish(await self._find(session, name), by, now)
            await self._finish(session, secrets, by, now)

    async def _lock(self, session: AsyncSession) -> datetime:
        """Order the changes of all processes.

        Return the time of the change, by the database's clock.
        """
        await (await session.connection()).execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK_ID})
        return (await session.exec(select(func.clock_timestamp()))).one()

    async def _find(self, session: AsyncSession, name: str, *, lock: bool = True) -> HttpTool:
        query = select(HttpTool).where(HttpTool.name == name)
        tool = (await session.exec(query.with_for_update() if lock else query)).first()
        if tool is None:
            raise DefinitionNotFound(name)
        return tool

    async def _insert(self, session: AsyncSession, change: DefinitionChange, by: str, now: datetime) -> None:
        definition = change.compiled.definition
        if (await session.exec(select(HttpTool.name).where(HttpTool.name == definition.name))).first() is not None:
            raise DefinitionConflict(f"There is a definition {definition.name!r} already.")
        if (await session.exec(select(func.count()).select_from(HttpTool))).one() >= MAX_DEFINITIONS:
            raise DefinitionConflict(f"There are {MAX_DEFINITIONS:,} definitions already.")
        session.add(
            HttpTool(
                name=definition.name,
                draft=definition.model_dump(mode="json", exclude_defaults=True),
                origin=change.compiled.origin,
                source=change.source,
                updated_by=by,
                updated_at=now,
            )
        )
        await session.flush()

    async def _replace(
        self, session: AsyncSession, name: str, change: DefinitionChange, by: str, revision: int, now: datetime
    ) -> None:
        tool = await self._find(session, name)
        if tool.revision != revision:
            raise _make_outdated(tool)
        tool.draft = change.compiled.definition.model_dump(mode="json", exclude_defaults=True)
        tool.origin = change.compiled.origin
        tool.revision += 1
        tool.source = change.source or tool.source
        tool.updated_by, tool.updated_at = by, now
        await session.flush()

    async def _finish(self, session: AsyncSession, secrets: Mapping[SecretKey, bytes], by: str, now: datetime) -> None:
        """Save new secrets, delete unused ones, and notify at the commit."""
        for (origin, name), value in secrets.items():
            row = {"origin": origin, "name": name, "value": value, "updated_by": by, "updated_at": now}
            upsert = insert(HttpToolSecret).values(row)
            await session.exec(upsert.on_conflict_do_update(index_elements=["origin", "name"], set_=row))  # pyright: ignore
        await session.flush()
        used = select(HttpTool.origin).union(
            select(HttpTool.published_origin).where(col(HttpTool.published_origin).is_not(None))  # pyright: ignore
        )
        await session.exec(delete(HttpToolSecret).where(col(HttpToolSecret.origin).not_in(used)))  # pyright: ignore
        await (await session.connection()).execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})


def _publish(tool: HttpTool, by: str, now: datetime) -> None:
    tool.published, tool.published_origin, tool.published_revision = tool.draft, tool.origin, tool.revision
    tool.updated_by, tool.updated_at = by, now


def _make_outdated(tool: HttpTool) -> DefinitionConflict:
    return DefinitionConflict(f"The definition {tool.name!r} has revision {tool.revision} by now.", "revision")
