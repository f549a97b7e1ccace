"""Tasks of MCP servers that turns wait for."""

from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlmodel import text

from gateway.domain.messages import LOCAL_PRINCIPAL, Principal
from gateway.domain.server_tasks import ServerTask
from gateway.ports.server_tasks import DueTask, TaskWait, TaskWaitRepository
from gateway.store.database import Database, DatabaseRow, decode_json, encode_jsonb

# The same fence as that of the journal's statements.
_REQUIRE_OWNERSHIP = text(
    "SELECT coalesce((SELECT id FROM turns WHERE id = :turn_id AND worker_id = :worker_id AND epoch = :epoch"
    " FOR SHARE), refuse_stale_write(:turn_id))"
)
_INSERT = text("""
INSERT INTO tool_tasks (id, turn_id, call_id, task, due_at)
VALUES (:id, :turn_id, :call_id, cast(:task AS jsonb), now() + make_interval(secs => :seconds))""")
_LIST = """
SELECT id, turn_id, call_id, task, settled_at IS NOT NULL FROM tool_tasks WHERE turn_id = :turn_id ORDER BY id"""
_ABANDON = text("UPDATE tool_tasks SET due_at = now(), settled_at = NULL WHERE id = ANY(:ids)")
_CLAIM = """
UPDATE tool_tasks AS task SET due_at = now() + make_interval(secs => :seconds)
FROM turns AS turn
WHERE turn.id = task.turn_id AND task.id IN (
    SELECT id FROM tool_tasks WHERE settled_at IS NULL AND due_at <= now()
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING task.id, task.turn_id, task.call_id, task.task, turn.owner, turn.caller,
          turn.status IN ('running', 'waiting') AND NOT turn.cancel_requested"""
_NEXT = "SELECT extract(epoch FROM min(due_at) - now())::float8 FROM tool_tasks WHERE settled_at IS NULL"
_POSTPONE = text("""
UPDATE tool_tasks SET due_at = now() + make_interval(secs => :seconds) WHERE id = :id AND settled_at IS NULL""")
# The turn is locked first, as by an answer to a question: a turn that is being suspended sees the end of the wait, or
# is woken by it.
_LOCK_TURN = text("SELECT id FROM turns WHERE id = :turn_id FOR NO KEY UPDATE")
_SETTLE = text("UPDATE tool_tasks SET settled_at = now() WHERE id = :id AND settled_at IS NULL")
_WAKE = text("""
UPDATE turns SET status = 'running', waits_for_task = false
WHERE id = :turn_id AND worker_id IS NULL AND status IN ('running', 'waiting')""")


class TaskWaitStore(TaskWaitRepository):
    """See `TaskWaitRepository`.

    `worker_id` owns the waiting turns; `on_due` is called when a task of this worker may be due earlier than others.
    """

    def __init__(self, database: Database, worker_id: UUID) -> None:
        self._database = database
        self._worker_id = worker_id
        self.on_due: Callable[[], None] = _ignore

    async def save_wait(self, turn_id: UUID, call_id: str, task: ServerTask, *, epoch: int) -> TaskWait:
        """See `TaskWaitRepository.save_wait`."""
        wait = TaskWait(UUID(int=uuids.uuid7().int), turn_id, call_id, task)
        fence = {"turn_id": turn_id, "worker_id": self._worker_id, "epoch": epoch}
        values = {
            "id": wait.id,
            "turn_id": turn_id,
            "call_id": call_id,
            "task": encode_jsonb(msgspec.structs.replace(task, message="")),  # the event has it, redacted
            "seconds": task.choose_poll_pause(),
        }
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(_REQUIRE_OWNERSHIP, fence)
            await connection.execute(_INSERT, values)
        self.on_due()
        return wait

    async def list_waits(self, turn_id: UUID) -> list[TaskWait]:
        """See `TaskWaitRepository.list_waits`."""
        rows = await self._database.fetch_rows(_LIST, turn_id=turn_id)
        return [_make_wait(row, is_settled=row[4]) for row in rows]

    async def abandon_waits(self, wait_ids: Collection[UUID]) -> None:
        """See `TaskWaitRepository.abandon_waits`."""
        async with self._database.session() as session:
            await (await session.connection()).execute(_ABANDON, {"ids": list(wait_ids)})
        self.on_due()

    async def claim_due(self, limit: int, seconds: float) -> list[DueTask]:
        """See `TaskWaitRepository.claim_due`."""
        rows = await self._database.fetch_rows(_CLAIM, limit=limit, seconds=seconds)
        return [DueTask(_make_wait(row), _parse_principal(row), is_awaited=row[6]) for row in rows]

    async def find_next_due(self) -> float | None:
        """See `TaskWaitRepository.find_next_due`."""
        [(seconds,)] = await self._database.fetch_rows(_NEXT)
        return None if seconds is None else float(seconds)

    async def postpone_poll(self, wait_id: UUID, seconds: float) -> None:
        """See `TaskWaitRepository.postpone_poll`."""
        async with self._database.session() as session:
            await (await session.connection()).execute(_POSTPONE, {"id": wait_id, "seconds": seconds})

    async def settle_wait(self, wait: TaskWait) -> bool:
        """See `TaskWaitRepository.settle_wait`."""
        turn = {"turn_id": wait.turn_id}
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(_LOCK_TURN, turn)
            await connection.execute(_SETTLE, {"id": wait.id})
            return bool((await connection.execute(_WAKE, turn)).rowcount)


def _ignore() -> None:
    """No poller runs yet."""


def _make_wait(row: DatabaseRow, *, is_settled: bool = False) -> TaskWait:
    task: Any = decode_json(row[3])
    return TaskWait(row[0], row[1], row[2], msgspec.convert(task, ServerTask), is_settled)


def _parse_principal(row: DatabaseRow) -> Principal:
    caller: Any = decode_json(row[5])
    if caller is not None:
        return msgspec.convert(caller, Principal)
    return LOCAL_PRINCIPAL if row[4] == LOCAL_PRINCIPAL.user else Principal(row[4])
