"""Export and erasure of a user's data, and retention of turns."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlmodel import text

from gateway.common.logging import get_logger
from gateway.common.pages import split_bytes
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import StorageUnavailable
from gateway.store.admin.user_export import EXPORTS, export_rows
from gateway.store.api_keys import notify_key_change, revoke_descendants
from gateway.store.audit import make_audit_entry
from gateway.store.bus import CHANNEL, NOTIFY, encode_message
from gateway.store.context.titles import clear_titles
from gateway.store.database import Database
from gateway.store.lists.owned_rows import IS_OWNED, OLDEST_FIRST

log = get_logger(__name__)

ERASED_USER = "(erased)"
"""Owner of rows that stay without their user.

They are usage, for statistics, and revoked keys. No new key may have this owner.
"""
_BATCH = 500
_BATCH_SECONDS = 60.0
_MAX_PASSES = 3
_PRUNE_SECONDS = 3600.0
_REVOKE_KEYS = """
UPDATE api_keys SET owner = :erased, name = '', revoked_at = coalesce(revoked_at, now()) WHERE owner = :user
RETURNING prefix
"""
_DELETE_TURNS = f"""
DELETE FROM turns WHERE id IN (SELECT id FROM turns WHERE {IS_OWNED} ORDER BY {OLDEST_FIRST} LIMIT :batch)
RETURNING id, status, conversation_id, left(prompt, 4000)
"""  # noqa: S608
# Rows without an end are left out: their turns run, or wait for a person.
_DELETE_OLD_TURNS = """
DELETE FROM turns WHERE id IN (
    SELECT id FROM turns WHERE id < :bound AND completed_at < :before ORDER BY id LIMIT :batch FOR UPDATE SKIP LOCKED)
RETURNING id, status, conversation_id, left(prompt, 4000)
"""
_DELETE_EVENTS = "DELETE FROM turn_events WHERE turn_id = ANY(:ids)"
_DELETE_EMPTY_CONVERSATIONS = """
DELETE FROM conversations WHERE id < :bound AND updated_at < :before
    AND NOT EXISTS (SELECT FROM turns WHERE turns.conversation_id = conversations.id)
"""
_ERASURES: dict[str, str] = {
    "conversations": "DELETE FROM conversations WHERE owner = :user",
    "turn_feedback": "DELETE FROM turn_feedback WHERE owner = :user",
    "cached_responses": "DELETE FROM cached_responses WHERE owner = :user",
    "budget_holds": "DELETE FROM budget_holds WHERE owner = :user",
    "upstream_objects": "DELETE FROM upstream_objects WHERE owner = :user",
    "request_holds": "DELETE FROM request_holds WHERE owner = :user",
    "turn_usage": "UPDATE turn_usage SET owner = :erased, key = NULL, conversation_id = NULL WHERE owner = :user",
    "oauth_grants": "DELETE FROM oauth_grants WHERE owner = :user",
    "oauth_logins": "DELETE FROM oauth_logins WHERE :user IN (login->>'owner', login->>'by')",
    "mcp_servers": "UPDATE mcp_servers SET changed_by = :erased WHERE changed_by = :user",
    "toolsets": "UPDATE toolsets SET changed_by = :erased WHERE changed_by = :user",
    "api_keys_made": "UPDATE api_keys SET created_by = :erased WHERE created_by = :user",
    "tools.http_tools": "UPDATE tools.http_tools SET updated_by = :erased WHERE updated_by = :user",
    "tools.http_tool_secrets": "UPDATE tools.http_tool_secrets SET updated_by = :erased WHERE updated_by = :user",
    "tools.tasks": "DELETE FROM tools.tasks WHERE user_id = :user",
    "tools.task_calls": "DELETE FROM tools.task_calls WHERE user_id = :user",
    "tools.task_counters": "DELETE FROM tools.task_counters WHERE user_id = :user",
}


class UserDataStore:
    """Data of one user in all tables, including those of tools.

    A tool server with a database of its own keeps its tasks.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def export_lines(self, user: str, *, by: str) -> AsyncGenerator[bytes]:
        """Yield a JSON line for each row of a user, in pieces.

        It has the name of the table, and the row.
        """
        async with self._database.session() as session:
            session.add(make_audit_entry(by, "user.export", f"user {user}", {}))
        for export in EXPORTS:
            if await self._has_table(export.table):
                async for row in export_rows(self._database, export, user):
                    line = f'{{"table":"{export.table}","row":{row}}}\n'.encode()
                    for piece in split_bytes(line):
                        yield piece

    async def revoke_keys(self, user: str, *, by: str) -> int:
        """Revoke a user's keys and all keys made with them.

        The user's name is removed from the user's keys. Returns their number.
        """
        async with self._database.session() as session:
            connection = await session.connection()
            rows = (await connection.execute(text(_REVOKE_KEYS), {"user": user, "erased": ERASED_USER})).all()
            await revoke_descendants(session, [row[0] for row in rows], by=by)
            await notify_key_change(session)
        return len(rows)

    async def list_open_turns(self, user: str) -> list[UUID]:
        query = "SELECT id FROM turns WHERE owner = :user AND status IN ('running', 'waiting')"
        return [row[0] for row in await self._database.fetch_rows(query, user=user)]

    async def erase(self, user: str, *, by: str) -> dict[str, int]:
        """Erase a user's data; return the number of rows by table.

        Workers cannot write for an erased turn. The entries of the audit log stay.
        """
        counts = {"api_keys": await self.revoke_keys(user, by=by), "turns": 0, "turn_events": 0}
        for _ in range(_MAX_PASSES):  # a turn may have begun meanwhile
            while await self._erase_turns(user, counts):
                pass
            if not await self._erase_rows(user, counts):
                break
        async with self._database.session() as session:
            session.add(make_audit_entry(by, "user.erase", f"user {user}", dict(counts)))
        return counts

    async def _erase_turns(self, user: str, counts: dict[str, int]) -> int:
        turns, events = await self._delete_turns(_DELETE_TURNS, {"owner": user, "batch": _BATCH})
        counts["turns"] += turns
        counts["turn_events"] += events
        return turns

    async def _erase_rows(self, user: str, counts: dict[str, int]) -> int:
        changed = 0
        for table, statement in _ERASURES.items():
            if not await self._has_table(table.removesuffix("_made")):
                continue
            values = {"user": user} | ({"erased": ERASED_USER} if ":erased" in statement else {})
            async with self._database.session(seconds=_BATCH_SECONDS) as session:
                rows = (await (await session.connection()).execute(text(statement), values)).rowcount
            counts[table] = counts.get(table, 0) + rows
            changed += rows
        return changed

    async def delete_old_turns(self, older_than: timedelta) -> int:
        """Delete a batch of turns that ended before `older_than`; return their number.

        Their usage stays. Conversations without turns go with them, and titles that repeat their prompts.
        """
        before = datetime.now(UTC) - older_than
        values = {"before": before, "bound": _first_id_at(before)}
        turns, _ = await self._delete_turns(_DELETE_OLD_TURNS, values | {"batch": _BATCH})
        if turns < _BATCH:
            async with self._database.session(seconds=_BATCH_SECONDS) as session:
                await (await session.connection()).execute(text(_DELETE_EMPTY_CONVERSATIONS), values)
        return turns

    async def _delete_turns(self, statement: str, values: Mapping[str, object]) -> tuple[int, int]:
        """Delete turns, then their events.

        Later writes for a deleted turn are refused. Workers that run one are notified at the commit, and stop it.
        """
        async with self._database.session(seconds=_BATCH_SECONDS) as session:
            connection = await session.connection()
            rows = (await connection.execute(text(statement), values)).all()
            ids = [row[0] for row in rows]
            for message in [BusMessage(BusKind.CANCEL_TURN, row[0]) for row in rows if row[1] == "running"]:
                await connection.execute(text(NOTIFY), {"channel": CHANNEL, "payload": encode_message(message)})
            events = (await connection.execute(text(_DELETE_EVENTS), {"ids": ids})).rowcount if ids else 0
            await clear_titles(connection, [(row[2], row[3]) for row in rows])
        return len(ids), events

    async def _has_table(self, table: str) -> bool:
        [(exists,)] = await self._database.fetch_rows("SELECT to_regclass(:table) IS NOT NULL", table=table)
        return bool(exists)


async def delete_old_turns_forever(store: UserDataStore, older_than: timedelta) -> None:
    """Delete turns that ended before `older_than`, in batches."""
    while True:
        delay = _PRUNE_SECONDS
        try:
            if await store.delete_old_turns(older_than) == _BATCH:
                delay = 1.0
        except StorageUnavailable:
            log.warning("turn_retention_failed")
        await asyncio.sleep(delay)


def _first_id_at(moment: datetime) -> UUID:
    """The least UUIDv7 of a moment.

    It bounds a range of the primary key.
    """
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)
