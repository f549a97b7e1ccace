"""A worker's heartbeat, and takeover of dead workers' turns."""

import asyncio
from datetime import timedelta
from uuid import UUID

from gateway.agent.runner import Runner
from gateway.common.concurrency import SupervisedTask, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, StorageUnavailable
from gateway.domain.messages import BusMessage
from gateway.ports.store import QuestionRepository, TurnRepository, WorkerRepository

log = get_logger(__name__)


class WorkerHeartbeat:
    """Writes a heartbeat every `interval_seconds`.

    A worker without one for `silence_seconds` counts as dead. A worker that could not write a heartbeat for that long
    gives up its turns, because other workers take them over.
    """

    def __init__(
        self,
        runner: Runner,
        workers: WorkerRepository,
        turns: TurnRepository,
        questions: QuestionRepository,
        worker_id: UUID,
        *,
        interval_seconds: float = 2.0,
        silence_seconds: float = 8.0,
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._turns = turns
        self._questions = questions
        self._worker_id = worker_id
        self._interval_seconds = interval_seconds
        self._silence_seconds = silence_seconds
        self._wake = asyncio.Event()
        self._last_heartbeat_at = 0.0
        self._abandoned: list[UUID] = []
        self.task = SupervisedTask("heartbeat", self._run_forever, vital=True)

    def on_turn_runnable(self, _message: BusMessage) -> None:
        """Look for turns to take over at once."""
        self._wake.set()

    async def _run_forever(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_heartbeat_at = self._last_heartbeat_at or loop.time()
        while True:
            self._wake.clear()
            if loop.time() - self._last_heartbeat_at > self._silence_seconds:
                self._abandoned += await self._runner.hand_over("storage_unavailable")
            try:
                await self._write_heartbeat()
                await self._release_abandoned()
                if not self._runner.is_stopping:
                    await self._questions.expire_overdue()
                    await self._take_over()
            except StorageUnavailable:
                log.warning("heartbeat_missed")
            await wait_or_poll(self._wake, self._interval_seconds)

    async def _write_heartbeat(self) -> None:
        started_at = asyncio.get_running_loop().time()
        await self._workers.heartbeat(self._worker_id)
        self._last_heartbeat_at = started_at

    async def _release_abandoned(self) -> None:
        if self._abandoned:
            await self._workers.release_turns(self._worker_id, self._abandoned)
            self._abandoned = []

    async def _take_over(self) -> None:
        for record, cancel in await self._workers.claim_turns(
            self._worker_id, timedelta(seconds=self._silence_seconds)
        ):
            try:
                await self._questions.expire_inline(record.id)
                events, inputs = (
                    await self._turns.load_journal(record.id),
                    await self._questions.list_for_turn(record.id),
                )
                self._runner.take_over(record, events, inputs, cancel=cancel)
                if asyncio.get_running_loop().time() - self._last_heartbeat_at >= self._interval_seconds:
                    await self._write_heartbeat()  # taking over many turns must not delay the heartbeat
            except StorageUnavailable:
                raise
            except GatewayError as error:
                log.error("turn_not_taken_over", turn_id=str(record.id), code=error.code)
