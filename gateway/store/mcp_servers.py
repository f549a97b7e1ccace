"""MCP servers added at run time, and approved tool definitions."""

from collections.abc import Mapping

import msgspec
from sqlalchemy import delete, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select

from gateway.common.urls import strip_url_secrets
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject
from gateway.ports.servers import ServerRecord, ServerRepository
from gateway.ports.tools import ToolDefinitionStore
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database, count_changed_rows
from gateway.store.encryption import Cipher
from gateway.store.models import McpServerRow, McpToolRow

ENCRYPTED_FIELD = "sealed"


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
            rows = list((await session.exec(select(McpServerRow).order_by(col(McpServerRow.name)))).all())
        return [ServerRecord(row.name, row.config and self._decrypt(row.config), row.disabled) for row in rows]

    async def save_server(self, name: str, config: JsonObject | None, *, disabled: bool, by: str) -> None:
        """See `ServerRepository.save_server`."""
        stored = config and self._encrypt(config)
        row = insert(McpServerRow).values(name=name, config=stored, disabled=disabled, changed_by=by)
        changed = {"config": row.excluded.config, "disabled": disabled, "changed_by": by, "changed_at": func.now()}
        async with self._database.session() as session:
            await session.exec(row.on_conflict_do_update(index_elements=["name"], set_=changed))
            detail = {"disabled": disabled, "url": strip_url_secrets((config or {}).get("url", "")) or None}
            session.add(make_audit_entry(by, "server.put", f"server {name}", detail))

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

    # --- definitions

    async def detect_changes(self, server: str, definitions: Mapping[str, JsonObject]) -> set[str]:
        """See `ToolDefinitionStore.detect_changes`."""
        query = select(McpToolRow).where(McpToolRow.server == server)
        async with self._database.session() as session:
            rows_by_tool = {row.tool: row for row in (await session.exec(query)).all()}
            new_rows = [
                {"server": server, "tool": tool, "definition": definition}
                for tool, definition in definitions.items()
                if tool not in rows_by_tool
            ]
            if new_rows:
                await session.exec(insert(McpToolRow).values(new_rows).on_conflict_do_nothing())
            changed = {
                tool for tool, d in definitions.items() if tool in rows_by_tool and rows_by_tool[tool].definition != d
            }
            for tool in changed:
                row = rows_by_tool[tool]
                if row.changed_to != definitions[tool]:
                    row.changed_to, row.changed_at = definitions[tool], func.now()  # type: ignore[assignment]
                    session.add(row)
        return changed

    async def list_changed_definitions(self) -> dict[tuple[str, str], tuple[JsonObject, JsonObject]]:
        """Return the approved and current definition of each changed tool.

        The keys are server and tool.
        """
        query = select(McpToolRow).where(col(McpToolRow.changed_to).is_not(None))
        async with self._database.session() as session:
            rows = (await session.exec(query)).all()
        return {(row.server, row.tool): (row.definition, row.changed_to or {}) for row in rows}

    async def approve_tool(self, server: str, tool: str, *, by: str) -> None:
        """Approve the current definition of a tool.

        Raises:
            NotFound: the tool has not changed.
        """
        changed_tool = (
            col(McpToolRow.server) == server,
            col(McpToolRow.tool) == tool,
            col(McpToolRow.changed_to).is_not(None),
        )
        change = update(McpToolRow).where(*changed_tool).values(definition=McpToolRow.changed_to, changed_to=None)
        async with self._database.session() as session:
            if not await count_changed_rows(session, change):
                raise NotFound(f"The tool {tool!r} of the server {server!r} has not changed.")
            session.add(make_audit_entry(by, "tool.approve", f"server {server}", {"tool": tool}))
