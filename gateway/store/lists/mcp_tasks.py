"""Turns that hosts of the MCP endpoint follow as tasks."""

from typing import Any, NamedTuple
from uuid import UUID

from gateway.domain.messages import JsonObject, Principal
from gateway.domain.reading import get_reader_key
from gateway.store.database import Database, decode_json
from gateway.store.lists.owned_rows import IS_OWNED, NEWEST_FIRST

TASK_ECHO_KEY = "mcp_task"
"""Name of the mark of such turns in their echoed data.

The mark has the task's `ttl` in milliseconds, and its `tool`.
"""
_LAST_ID = UUID(int=2**128 - 1)
_PAGE = f"""
SELECT id, status, cancel_requested, finish_reason, options->'echo'->'mcp_task', completed_at
FROM turns
WHERE {IS_OWNED} AND (cast(:key AS text) IS NULL OR caller->>'key' = :key) AND id < :before AND id >= :oldest
  AND jsonb_exists(options->'echo', :echo)
ORDER BY {NEWEST_FIRST} LIMIT :limit
"""  # noqa: S608
# Turns that run or wait have no time of completion, so the index on that has them together.
_COUNT = """
SELECT count(*) FROM (
    SELECT FROM turns WHERE owner = :owner AND completed_at IS NULL AND status IN ('running', 'waiting')
      AND jsonb_exists(options->'echo', :echo) LIMIT :limit
) AS counted
"""


class TaskRow(NamedTuple):
    """A turn as a task.

    `mark` is that of the turn's echoed data.
    """

    id: UUID
    status: str
    cancel_requested: bool
    finish_reason: str | None
    mark: JsonObject
    completed_at: object


class McpTaskStore:
    """Lists and counts the tasks of users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_page(
        self, principal: Principal, *, limit: int, before: UUID | None, oldest: UUID
    ) -> tuple[list[TaskRow], bool]:
        """List tasks that the principal may read, newest first, between two ids.

        Returns also whether there are more.
        """
        rows = await self._database.fetch_rows(
            _PAGE,
            owner=principal.user,
            key=get_reader_key(principal),
            before=before or _LAST_ID,
            oldest=oldest,
            echo=TASK_ECHO_KEY,
            limit=limit + 1,
        )
        tasks = [TaskRow(row[0], row[1], row[2], row[3], _decode_mark(row[4]), row[5]) for row in rows[:limit]]
        return tasks, len(rows) > limit

    async def count_open(self, user: str, limit: int) -> int:
        """Count a user's tasks that have not ended, up to `limit`."""
        [(count,)] = await self._database.fetch_rows(_COUNT, owner=user, echo=TASK_ECHO_KEY, limit=limit)
        return count


def _decode_mark(value: object) -> JsonObject:
    mark: Any = decode_json(value)
    return mark
