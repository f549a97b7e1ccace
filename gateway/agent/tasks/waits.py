"""The tasks of servers that one turn waits for."""

from collections.abc import Sequence
from uuid import UUID

from gateway.agent.transcript import Transcript
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.events import ToolProgress, TurnCompleted, TurnEnd
from gateway.domain.messages import TurnRecord
from gateway.domain.server_tasks import ServerTask
from gateway.ports.server_tasks import TaskWait, TaskWaitRepository

log = get_logger(__name__)

TASK_WAIT = "task_wait"
"""Why the log of a turn closes that waits for tasks alone."""
_NO_IDS: frozenset[UUID] = frozenset()
_MESSAGE = "The server runs this call as a task."


class TurnTaskWaits:
    """The waits of a turn, by call.

    The last one of a call counts. Calls of a turn that is not stored, which has no record, do not wait.
    """

    def __init__(self, record: TurnRecord | None = None, repository: TaskWaitRepository | None = None) -> None:
        self._record = record
        self._repository = repository
        self._waits: dict[str, TaskWait] = {}
        self.settled_ids = _NO_IDS
        """Ids of the waits whose end this run has seen."""

    def restore_waits(self, waits: Sequence[TaskWait]) -> None:
        """Load what earlier workers have stored."""
        self._waits = {wait.call_id: wait for wait in waits}
        self.settled_ids = frozenset(wait.id for wait in waits if wait.is_settled)

    def find_wait(self, call_id: str) -> TaskWait | None:
        """Return the wait of a call for its task."""
        return self._waits.get(call_id)

    def find_task(self, call_id: str) -> ServerTask | None:
        """Return the task of a call, if its server runs one."""
        wait = self._waits.get(call_id)
        return None if wait is None else wait.task

    async def begin_wait(self, call_id: str, task: ServerTask) -> ToolProgress:
        """Store a wait; return the event that tells of it.

        Raises:
            TurnTakenOver: this worker does not own the turn any longer.
        """
        assert self._record is not None
        assert self._repository is not None
        wait = await self._repository.save_wait(self._record.id, call_id, task, epoch=self._record.epoch)
        self._waits[call_id] = wait
        return make_wait_event(wait)

    async def abandon_open_waits(self, end: TurnEnd, transcript: Transcript) -> None:
        """Cancel the tasks of open calls, unless the turn completes."""
        if self._record is None or self._repository is None or not self._waits or isinstance(end, TurnCompleted):
            return
        open_waits = [wait for wait in self._waits.values() if transcript.find_result(wait.call_id) is None]
        waits = [wait.id for wait in open_waits]
        try:
            await self._repository.abandon_waits(waits)
        except GatewayError as error:  # the poller finds them later
            log.warning("tasks_not_abandoned", turn_id=str(self._record.id), code=error.code)


def make_wait_event(wait: TaskWait) -> ToolProgress:
    """Build the event of a call that waits for its task."""
    message = f"{_MESSAGE} {wait.task.message}".strip()
    return ToolProgress(call_id=wait.call_id, progress=0.0, message=message, wait_id=str(wait.id))
