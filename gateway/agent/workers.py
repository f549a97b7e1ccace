"""A worker among workers: it says that it lives, and takes over the turns of those that do not."""

import asyncio
from datetime import timedelta
from uuid import UUID

from gateway.agent.runner import Runner
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, StorageUnavailable
from gateway.domain.messages import BusMessage
from gateway.ports.store import QuestionRepository, TurnRepository, WorkerRepository

log = get_logger(__name__)


class WorkerHeartbeat:
    """Beats every `interval` seconds. Who is silent for `silent` seconds counts as dead.

    A worker that cannot beat for so long must think so of itself: it stops its turns, for others will run them.
    """

    def __init__(
        self,
        runner: Runner,
        workers: WorkerRepository,
        turns: TurnRepository,
        inputs: QuestionRepository,
        worker_id: UUID,
        *,
        interval: float = 2.0,
        silent: float = 8.0,
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._turns = turns
        self._inputs = inputs
        self._worker_id = worker_id
        self._interval = interval
        self._silent = silent
        self._look = asyncio.Event()
        self._seen_at = 0.0
        self._abandoned: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._seen_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._live(), name="membership")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_orphan(self, _message: BusMessage) -> None:
        """Look for turns to take over now."""
        self._look.set()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._look.clear()
            began = loop.time()
            if began - self._seen_at > self._silent:
                self._abandoned += await self._runner.hand_over(StorageUnavailable.code)
            try:
                await self._beat()
                await self._release()
                if not self._runner.stopping:
                    await self._inputs.expire()
                    await self._take_over()
            except StorageUnavailable:
                log.warning("heartbeat_missed")
            try:
                async with asyncio.timeout(self._interval):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _beat(self) -> None:
        began = asyncio.get_running_loop().time()
        await self._workers.heartbeat(self._worker_id)
        self._seen_at = began

    async def _release(self) -> None:
        if self._abandoned:
            await self._workers.release(self._worker_id, self._abandoned)
            self._abandoned = []

    async def _take_over(self) -> None:
        for record, cancel in await self._workers.claim(self._worker_id, timedelta(seconds=self._silent)):
            try:
                await self._inputs.drop_held(record.id)
                events, inputs = await self._turns.journal(record.id), await self._inputs.of_turn(record.id)
                self._runner.take_over(record, events, inputs, cancel=cancel)
                if asyncio.get_running_loop().time() - self._seen_at >= self._interval:
                    await self._beat()  # many take long, and whoever is silent for it loses them again
            except StorageUnavailable:
                raise
            except GatewayError as error:
                log.error("turn_not_taken_over", turn_id=str(record.id), code=error.code)
