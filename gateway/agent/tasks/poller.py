"""Polls the tasks of servers that suspended turns wait for."""

import asyncio
from uuid import UUID

from gateway.common.concurrency import SupervisedTask, TaskSet, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import GatewayError
from gateway.ports.server_tasks import DueTask, TaskClient, TaskWaitRepository
from gateway.ports.store import Bus

log = get_logger(__name__)

_MAX_POLLS = 16
"""Polls of a worker at once."""
_CLAIM_SECONDS = 30.0
"""Time after which another worker polls a task.

A poll takes at most ten seconds.
"""
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.05, 5.0


class TaskPoller:
    """Polls tasks that are due, for all turns.

    Any worker polls any task. Where a call may go on, its turn becomes runnable, and any worker claims it. The task of
    a turn that has ended is cancelled.
    """

    def __init__(self, waits: TaskWaitRepository, client: TaskClient, bus: Bus) -> None:
        self._waits = waits
        self._client = client
        self._bus = bus
        self._wake = asyncio.Event()
        self._polls = TaskSet("poll of mcp task")
        self._polled: set[UUID] = set()
        self.task = SupervisedTask("task poller", self._poll_forever)

    def wake_poller(self) -> None:
        """Look for due tasks at once."""
        self._wake.set()

    async def _poll_forever(self) -> None:
        try:
            while True:
                self._wake.clear()
                await wait_or_poll(self._wake, await self._start_polls())
        finally:
            await self._polls.stop()

    async def _start_polls(self) -> float:
        """Poll what is due; return the seconds until more is."""
        room = _MAX_POLLS - len(self._polled)
        if room <= 0:
            return _MAX_PAUSE_SECONDS  # a poll that ends wakes the poller
        try:
            next_due = await self._waits.find_next_due()
            if next_due is None:
                return _MAX_PAUSE_SECONDS
            if next_due > 0:
                return min(max(next_due, _MIN_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
            for due in await self._waits.claim_due(room, _CLAIM_SECONDS):
                self._polled.add(due.wait.id)
                self._polls.spawn(self._poll_task(due))
        except GatewayError as error:
            log.warning("tasks_not_polled", code=error.code)
            return _MAX_PAUSE_SECONDS
        return _MIN_PAUSE_SECONDS

    async def _poll_task(self, due: DueTask) -> None:
        wait = due.wait
        try:
            if due.is_awaited:
                is_over = await self._client.is_task_settled(wait.task, due.principal)
            else:
                is_over = await self._client.cancel_server_task(wait.task, due.principal)
            if not is_over:
                await self._waits.postpone_poll(wait.id, wait.task.choose_poll_pause())
            elif await self._waits.settle_wait(wait) and due.is_awaited:
                self._bus.publish(BusMessage(BusKind.TURN_RUNNABLE, wait.turn_id))
        except GatewayError as error:
            log.warning("task_not_polled", turn_id=str(wait.turn_id), code=error.code)
        finally:
            self._polled.discard(wait.id)
            self._wake.set()
