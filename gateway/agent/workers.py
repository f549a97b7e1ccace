"""The renewal of a worker's lease, and the takeover of turns."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from gateway.agent.runner import Runner
from gateway.agent.starting.takeover import StoredProgress
from gateway.agent.transcript import Transcript
from gateway.common.concurrency import SupervisedTask, wait_or_poll
from gateway.common.lease import WorkerLease, read_clock
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import GatewayError, StorageUnavailable, TooManyAttempts, TurnUnreadable
from gateway.domain.messages import MAX_ATTEMPTS, TurnClaim
from gateway.ports.server_tasks import TaskWaitRepository
from gateway.ports.store import QuestionRepository, TurnRepository, WorkerRepository

log = get_logger(__name__)

_MAX_RETRY_SECONDS = 0.5
_LAST_ATTEMPT_POLL_SECONDS = 0.25
"""Pause between looks while a turn in its last attempt runs.

Others may wait for the end of its step.
"""


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Times of a lease, in seconds.

    `interval` is the pause between renewals, `lease` the length that each grants.
    """

    interval: float = 2.0
    lease: float = 8.0


class WorkerHeartbeat:
    """Renews the lease of this worker.

    A renewal that takes a quarter of the lease has failed. Where another worker has ended the lease, this one gives its
    turns up and registers anew.
    """

    def __init__(
        self,
        runner: Runner,
        workers: WorkerRepository,
        lease: WorkerLease,
        timing: LeaseTiming,
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._lease = lease
        self._timing = timing
        self._retry_seconds = min(timing.interval, _MAX_RETRY_SECONDS)
        self.task = SupervisedTask("heartbeat", self._run_forever, vital=True, max_backoff_seconds=self._retry_seconds)

    async def start(self) -> None:
        """Register this worker, then renew its lease in the background."""
        await self._try_to_renew()
        self.task.start()

    async def _run_forever(self) -> None:
        while True:
            renewed = await self._try_to_renew()
            await asyncio.sleep(self._timing.interval if renewed else self._retry_seconds)

    async def _try_to_renew(self) -> bool:
        try:
            async with asyncio.timeout(self._timing.lease / 4):
                await self._renew()
        except (GatewayError, TimeoutError) as error:
            log.warning("heartbeat_missed", error=type(error).__name__)
            return False
        return True

    async def _renew(self) -> None:
        sent_at = read_clock()
        seconds = await self._workers.renew_lease(self._timing.lease)
        if seconds is None and not self._runner.is_stopping:
            if self._lease.is_valid:
                log.warning("lease_lost")
            self._lease.end()
            sent_at = read_clock()
            seconds = await self._workers.register(self._timing.lease)
        if seconds is not None:
            self._lease.renew(sent_at, seconds)


class TurnClaimer:
    """Claims turns that no worker runs.

    It looks for them regularly, and when a message announces one. A worker of release 0.1.0, which has no lease, is
    dead after the length of one without a heartbeat.
    """

    def __init__(
        self,
        runner: Runner,
        workers: WorkerRepository,
        lease: WorkerLease,
        turns: TurnRepository,
        questions: QuestionRepository,
        tasks: TaskWaitRepository,
        timing: LeaseTiming,
    ) -> None:
        self._runner = runner
        self._tasks = tasks
        self._workers = workers
        self._lease = lease
        self._turns = turns
        self._questions = questions
        self._interval_seconds = timing.interval
        self._silence = timedelta(seconds=timing.lease)
        self._wake = asyncio.Event()
        self._ownerless: set[UUID] = set()
        self._last_attempt: UUID | None = None
        self.task = SupervisedTask("takeover", self._run_forever, vital=True, max_backoff_seconds=timing.interval)

    def on_turn_runnable(self, _message: BusMessage) -> None:
        """Look for turns to take over at once."""
        self._wake.set()

    def on_lease_end(self) -> None:
        """Give up the stored turns, which other workers may claim."""
        self._ownerless.update(self._runner.give_up_turns())

    async def _run_forever(self) -> None:
        while True:
            self._wake.clear()
            if self._lease.is_valid and not self._runner.is_stopping:
                try:
                    await self._release_ownerless_turns()
                    await self._questions.expire_overdue()
                    await self._claim_turns()
                except GatewayError as error:
                    log.warning("takeover_failed", code=error.code)
            await wait_or_poll(self._wake, self._choose_pause())

    def _choose_pause(self) -> float:
        if self._last_attempt is None or not self._runner.is_busy_with(self._last_attempt):
            return self._interval_seconds
        return min(self._interval_seconds, _LAST_ATTEMPT_POLL_SECONDS)

    async def _release_ownerless_turns(self) -> None:
        """Release turns that belong to this worker but do not run here.

        They were given up, or their claim was interrupted. A turn whose start is being written enters the runner a
        moment later; so it must be missing twice. A turn whose writes the journal still tries stays, because its next
        owner could not write, either, and would not know the results in them. Each release counts as an attempt: the
        turn itself may have stalled its worker until the lease ended.
        """
        ownerless = {turn_id for turn_id in await self._workers.list_turns() if not self._runner.is_busy_with(turn_id)}
        if released := ownerless & self._ownerless:
            await self._workers.release_turns(list(released), is_lost=True)
        self._ownerless = ownerless - released

    async def _claim_turns(self) -> None:
        if not self._lease.is_valid:  # it has ended since the release; a turn could not run, and an attempt would count
            return
        claims = await self._workers.claim_turns(self._silence)
        for claim in claims:
            if claim.is_last_attempt:
                self._last_attempt = claim.turn_id
            await self._take_over(claim)
        if claims:
            self._wake.set()  # there may be more

    async def _take_over(self, claim: TurnClaim) -> None:
        """Continue a claimed turn, or end it where that is impossible.

        One turn that cannot be read must not stop the takeover of the others.
        """
        error: GatewayError
        try:
            if claim.attempts > MAX_ATTEMPTS:  # not even its end could be written by a takeover
                raise TooManyAttempts
            await self._questions.expire_inline(claim.turn_id, epoch=claim.epoch)
            record, cancel = await self._turns.load_record(claim)
            events = await self._turns.load_journal(claim.turn_id)
            inputs = await self._questions.list_for_turn(claim.turn_id)
            waits = await self._tasks.list_waits(claim.turn_id)
            self._runner.take_over(record, StoredProgress(events, inputs, waits), cancel=cancel)
            self._runner.on_watch(BusMessage(BusKind.WATCH_TURN, claim.turn_id))  # its followers have waited
            return
        except StorageUnavailable:
            raise
        except GatewayError as refusal:
            error = refusal
        except Exception:  # the rows of a turn may hold anything
            log.exception("turn_takeover_crashed", turn_id=str(claim.turn_id))
            error = TurnUnreadable()
        log.error("turn_not_taken_over", turn_id=str(claim.turn_id), code=error.code)
        await self._workers.end_turn(claim, error.to_error_info(), await self._read_text(claim))

    async def _read_text(self, claim: TurnClaim) -> str:
        """Return the text of a turn's journal, which its clients have seen.

        It is empty if it cannot be read, or if a worker may have died of reading it.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        if claim.attempts > MAX_ATTEMPTS + 1:
            return ""
        transcript = Transcript()
        try:
            for entry in await self._turns.load_journal(claim.turn_id):
                transcript.apply(entry.event)
        except StorageUnavailable:
            raise
        except Exception:  # the rows of a turn may hold anything
            log.exception("turn_text_unreadable", turn_id=str(claim.turn_id))
            return ""
        return transcript.response
