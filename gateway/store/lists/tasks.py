"""Filtered lists of turns as tasks, newest first."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from gateway.common.pages import MAX_PAGE_BYTES, Page
from gateway.domain.messages import Principal
from gateway.domain.reading import get_reader_key
from gateway.store.database import Database
from gateway.store.lists.owned_rows import IS_OWNED, NEWEST_FIRST

MAX_COUNTED = 10_000
"""Number of tasks from which on a count is no higher."""
_LAST_ID = UUID(int=2**128 - 1)
_MATCH = f"""
{IS_OWNED} AND (cast(:key AS text) IS NULL OR caller->>'key' = :key)
AND (cast(:conversation_id AS uuid) IS NULL OR conversation_id = :conversation_id)
AND (cast(:status AS text) IS NULL OR status = :status)
AND (cast(:signs_in AS boolean) IS NULL OR waits_for_sign_in(id) = :signs_in)
AND (cast(:since AS timestamptz) IS NULL OR coalesce(completed_at, created_at) >= :since)
"""
_PAGE = f"""
WITH listed AS MATERIALIZED (
    SELECT id, octet_length(prompt) + octet_length(response) AS size FROM turns
    WHERE {_MATCH} AND id < :before ORDER BY {NEWEST_FIRST} LIMIT :limit
), sized AS (SELECT id, sum(size) OVER (ORDER BY id DESC) - size AS bytes_before FROM listed)
SELECT (SELECT count(*) FROM listed), t.id, coalesce(c.external_id, t.conversation_id::text), t.status,
       t.status = 'waiting' AND waits_for_sign_in(t.id), t.prompt, t.response, t.options->'echo'->>'message_id',
       coalesce(t.completed_at, t.created_at)
FROM sized JOIN turns AS t ON t.id = sized.id LEFT JOIN conversations AS c ON c.id = t.conversation_id
WHERE bytes_before < {MAX_PAGE_BYTES} ORDER BY t.id DESC
"""  # noqa: S608
_COUNT = f"SELECT count(*) FROM (SELECT FROM turns WHERE {_MATCH} LIMIT {MAX_COUNTED}) AS counted"  # noqa: S608
_FIND_BY_ECHO = """
SELECT id FROM turns WHERE conversation_id = :conversation_id AND options->'echo'->>:key = :value
ORDER BY id DESC LIMIT 1
"""


class TaskFilter(NamedTuple):
    """Conditions of a list; None: any.

    `signs_in`: whether all open questions of the turn are sign-ins. `since` is compared with the time of the last
    change of status.
    """

    conversation_id: UUID | None = None
    status: str | None = None
    signs_in: bool | None = None
    since: datetime | None = None


class ListedTask(NamedTuple):
    """A turn of a list.

    `conversation_id` is the client's own id, if it has one.
    """

    id: UUID
    conversation_id: str | None
    status: str
    signs_in: bool
    prompt: str
    response: str
    message_id: str | None
    changed_at: datetime


class TaskListStore:
    """Lists the turns that a principal may read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_page(
        self, principal: Principal, conditions: TaskFilter, *, limit: int, before: UUID | None
    ) -> Page[ListedTask]:
        """List turns below the turn `before`.

        The page may end before `limit`, by its bytes.
        """
        rows = await self._database.fetch_rows(
            _PAGE, **_bind(principal, conditions), before=before or _LAST_ID, limit=limit + 1
        )
        tasks = [ListedTask(*row[1:]) for row in rows[:limit]]
        return Page(tasks, bool(rows) and rows[0][0] > len(tasks))

    async def count_tasks(self, principal: Principal, conditions: TaskFilter) -> int:
        """Count the turns of a list, up to `MAX_COUNTED`."""
        [(count,)] = await self._database.fetch_rows(_COUNT, **_bind(principal, conditions))
        return count

    async def find_by_echo(self, conversation_id: UUID, key: str, value: str) -> UUID | None:
        """Find the newest turn of a conversation by its echoed data."""
        rows = await self._database.fetch_rows(_FIND_BY_ECHO, conversation_id=conversation_id, key=key, value=value)
        return rows[0][0] if rows else None


def _bind(principal: Principal, conditions: TaskFilter) -> dict[str, Any]:
    return {"owner": principal.user, "key": get_reader_key(principal), **conditions._asdict()}
