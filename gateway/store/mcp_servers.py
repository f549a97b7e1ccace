"""MCP servers added at run time, and approved tool definitions."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec
from sqlalchemy import case, delete, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.urls import strip_url_secrets
from gateway.domain.bus import BusKind
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject
from gateway.ports.servers import ServerRecord, ServerRepository
from gateway.ports.tools import INSTRUCTIONS, ToolDefinitionStore
from gateway.store.audit import make_audit_entry
from gateway.store.bus import notify_at_commit
from gateway.store.database import Database, count_changed_rows
from gateway.store.encryption import Cipher
from gateway.store.models import McpServerRow, McpToolRow

ENCRYPTED_FIELD = "sealed"
_DETAIL_FIELDS = ("outputSchema",)
"""Fields of definitions that release 0.1.0 does not compare."""


class ServerStore(ServerRepository, ToolDefinitionStore):
    """Rows of `mcp_servers` and `mcp_tools`.

    Configurations are encrypted, because their headers and addresses may contain secrets.
    """

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def list_servers(self) -> list[ServerRecord]:
        """See `ServerRepository.list_servers`."""
        async with self._database.session() as session:
            order = col(McpServerRow.created_at), col(McpServerRow.name)
            rows = list((await session.exec(select(McpServerRow).order_by(*order))).all())
        return [ServerRecord(row.name, row.config and self._decrypt(row.config), row.disabled) for row in rows]

    async def save_server(self, name: str, config: JsonObject | None, *, disabled: bool, by: str) -> None:
        """See `ServerRepository.save_server`."""
        stored = config and self._encrypt(config)
        row = insert(McpServerRow).values(name=name, config=stored, disabled=disabled, changed_by=by)
        is_new = col(McpServerRow.config).is_(None) & row.excluded.config.is_not(
            None
        )  # beside a removed entry of the file
        changed = {
            "config": row.excluded.config,
            "disabled": disabled,
            "changed_by": by,
            "changed_at": func.now(),
            "created_at": case((is_new, func.now()), else_=McpServerRow.created_at),
        }
        async with self._database.session() as session:
            await session.exec(row.on_conflict_do_update(index_elements=["name"], set_=changed))
            await _record_save(session, name, config, disabled=disabled, by=by)

    async def change_server(
        self, name: str, change: Callable[[JsonObject], JsonObject], *, disabled: bool | None, by: str
    ) -> None:
        """See `ServerRepository.change_server`."""
        query = select(McpServerRow).where(McpServerRow.name == name).with_for_update()
        async with self._database.session() as session:
            row = (await session.exec(query)).first()
            if row is None or row.config is None:
                raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")
            config = change(self._decrypt(row.config))
            row.config, row.changed_by, row.changed_at = self._encrypt(config), by, datetime.now(UTC)
            row.disabled = row.disabled if disabled is None else disabled
            session.add(row)
            await _record_save(session, name, config, disabled=row.disabled, by=by)

    def _encrypt(self, config: JsonObject) -> JsonObject:
        if ENCRYPTED_FIELD in config:  # this worker has another encryption key
            return {ENCRYPTED_FIELD: config[ENCRYPTED_FIELD]}
        return {ENCRYPTED_FIELD: self._cipher.encrypt(msgspec.json.encode(config)).decode()}

    def _decrypt(self, stored: JsonObject) -> JsonObject:
        if ENCRYPTED_FIELD not in stored:  # written before configurations were encrypted
            return stored
        plain = self._cipher.decrypt(stored[ENCRYPTED_FIELD].encode())
        if plain is None:
            return stored | {"fault": "it was added with another GATEWAY_ENCRYPTION_KEY; remove it and add it again"}
        return msgspec.json.decode(plain)

    async def delete_server(self, name: str, *, by: str) -> None:
        """See `ServerRepository.delete_server`."""
        async with self._database.session() as session:
            await session.exec(delete(McpServerRow).where(col(McpServerRow.name) == name))
            await session.exec(delete(McpToolRow).where(col(McpToolRow.server) == name))
            session.add(make_audit_entry(by, "server.remove", f"server {name}", {}))
            await notify_at_commit(session, BusKind.SERVERS_CHANGED)

    # --- definitions

    async def detect_changes(self, server: str, definitions: Mapping[str, JsonObject], *, hold_new: bool) -> set[str]:
        """See `ToolDefinitionStore.detect_changes`."""
        query = select(McpToolRow).where(McpToolRow.server == server)
        changed: set[str] = set()
        new_rows: list[JsonObject] = []
        async with self._database.session() as session:
            rows_by_tool = {row.tool: row for row in (await session.exec(query)).all()}
            is_known = bool(rows_by_tool)
            for tool, current in definitions.items():
                definition, details = _split_definition(current)
                row = rows_by_tool.get(tool)
                if row is None:
                    is_held = is_known and hold_new and tool != INSTRUCTIONS
                    changed |= {tool} if is_held else set()
                    new_rows.append(_make_row(server, tool, definition, details, is_held=is_held))
                elif tool == INSTRUCTIONS and _is_mark(row):
                    row.definition, row.details = definition, details
                    session.add(row)
                elif row.definition != definition or row.details not in (details, None):
                    changed.add(tool)
                    _record_change(row, definition, details)
                    session.add(row)
                elif row.details is None:
                    row.details = details
                    session.add(row)
            if not is_known and not new_rows:  # a server without tools, so that later ones are new
                new_rows.append(_make_row(server, INSTRUCTIONS, {}, {}, is_held=False))
            if new_rows:
                await session.exec(insert(McpToolRow).values(new_rows).on_conflict_do_nothing())
        return changed

    async def list_changed_definitions(self) -> dict[tuple[str, str], tuple[JsonObject, JsonObject]]:
        """Return the approved and current definition of each changed tool.

        The keys are server and tool. The approved definition of a new tool is empty.
        """
        query = select(McpToolRow).where(col(McpToolRow.changed_to).is_not(None))
        async with self._database.session() as session:
            rows = (await session.exec(query)).all()
        return {
            (row.server, row.tool): (
                row.definition | (row.details or {}),
                (row.changed_to or {}) | (row.details_changed_to or {}),
            )
            for row in rows
        }

    async def approve_tool(self, server: str, tool: str, *, by: str) -> None:
        """Approve the current definition of a tool, or the instructions.

        Raises:
            NotFound: it has not changed.
        """
        changed_tool = (
            col(McpToolRow.server) == server,
            col(McpToolRow.tool) == tool,
            col(McpToolRow.changed_to).is_not(None),
        )
        approved = {
            "definition": McpToolRow.changed_to,
            "details": func.coalesce(McpToolRow.details_changed_to, McpToolRow.details),
            "changed_to": None,
            "details_changed_to": None,
        }
        async with self._database.session() as session:
            if not await count_changed_rows(session, update(McpToolRow).where(*changed_tool).values(approved)):
                name = f"The tool {tool!r}" if tool != INSTRUCTIONS else "The text of the instructions"
                raise NotFound(f"{name} of the server {server!r} has not changed.")
            action = "tool.approve" if tool != INSTRUCTIONS else "instructions.approve"
            session.add(make_audit_entry(by, action, f"server {server}", {"tool": tool} if tool else {}))


async def _record_save(session: AsyncSession, name: str, config: JsonObject | None, *, disabled: bool, by: str) -> None:
    """Write a saved server's audit entry, and notify other workers."""
    detail = {"disabled": disabled, "url": strip_url_secrets((config or {}).get("url", "")) or None}
    session.add(make_audit_entry(by, "server.put", f"server {name}", detail))
    await notify_at_commit(session, BusKind.SERVERS_CHANGED)


def _split_definition(definition: JsonObject) -> tuple[JsonObject, JsonObject]:
    """Split a definition into two parts.

    Release 0.1.0 compares the fields of the first one.
    """
    details = {name: definition[name] for name in _DETAIL_FIELDS if name in definition}
    return {name: value for name, value in definition.items() if name not in details}, details


def _make_row(server: str, tool: str, definition: JsonObject, details: JsonObject, *, is_held: bool) -> JsonObject:
    """The row of a new tool, which is approved unless it `is_held`."""
    return {
        "server": server,
        "tool": tool,
        "definition": {} if is_held else definition,
        "details": {} if is_held else details,
        "changed_to": definition if is_held else None,
        "details_changed_to": details if is_held else None,
    }


def _is_mark(row: McpToolRow) -> bool:
    """Whether a row only says that the server is known."""
    return not row.definition and row.changed_to is None


def _record_change(row: McpToolRow, definition: JsonObject, details: JsonObject) -> None:
    if row.changed_to != definition or row.details_changed_to != details:
        row.changed_to, row.details_changed_to = definition, details
        row.changed_at = func.now()  # type: ignore[assignment]
