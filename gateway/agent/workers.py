"""The heartbeat of a worker, which also takes over the turns of workers without one."""

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
    """Writes a heartbeat every `interval_seconds`. A worker counts as dead after `silence_seconds` without.

    A worker that could not write one for so long hands over its turns, because other workers will run them.
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
        self._interval = interval_seconds
        self._silent = silence_seconds
        self._look_now = asyncio.Event()
        self._seen_at = 0.0
        self._abandoned: list[UUID] = []
        self.task = SupervisedTask("heartbeat", self._run_forever, vital=True)

    def on_orphan(self, _message: BusMessage) -> None:
        """Look for turns to take over now."""
        self._look_now.set()

    async def _run_forever(self) -> None:
        loop = asyncio.get_running_loop()
        self._seen_at = self._seen_at or loop.time()
        while True:
            self._look_now.clear()
            if loop.time() - self._seen_at > self._silent:
                self._abandoned += await self._runner.hand_over("storage_unavailable")
            try:
                await self._write_heartbeat()
                await self._release_abandoned()
                if not self._runner.is_stopping:
                    await self._questions.expire_overdue()
                    await self._take_over()
            except StorageUnavailable:
                log.warning("heartbeat_missed")
            await wait_or_poll(self._look_now, self._interval)

    async def _write_heartbeat(self) -> None:
        began = asyncio.get_running_loop().time()
        await self._workers.heartbeat(self._worker_id)
        self._seen_at = began

    async def _release_abandoned(self) -> None:
        if self._abandoned:
            await self._workers.release_turns(self._worker_id, self._abandoned)
            self._abandoned = []

    async def _take_over(self) -> None:
        for record, cancel in await self._workers.claim_turns(self._worker_id, timedelta(seconds=self._silent)):
            try:
                await self._questions.expire_inline(record.id)
                events, inputs = (
                    await self._turns.load_journal(record.id),
                    await self._questions.list_for_turn(record.id),
                )
                self._runner.take_over(record, events, inputs, cancel=cancel)
                if asyncio.get_running_loop().time() - self._seen_at >= self._interval:
                    await self._write_heartbeat()  # taking over many turns must not delay the heartbeat
            except StorageUnavailable:
                raise
            except GatewayError as error:
                log.error("turn_not_taken_over", turn_id=str(record.id), code=error.code)
