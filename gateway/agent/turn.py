"""A turn that runs in this process.

The module covers its events, its questions to the user, and its cancellation.
"""

import asyncio
import time
from typing import Literal
from uuid import UUID

import msgspec

from gateway.agent.budgets import Budgets
from gateway.agent.following.cancel_reasons import CANCEL_MESSAGES, CancelReason
from gateway.agent.model_context import TurnContext
from gateway.agent.starting.takeover import StoredProgress
from gateway.agent.tasks.waits import TurnTaskWaits
from gateway.agent.tool_calls import build_input_resolved
from gateway.agent.transcript import Transcript
from gateway.agent.turn_log import TurnLog
from gateway.common.concurrency import LightEvent, wait_for_result, wait_or_poll
from gateway.common.lease import WorkerLease
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.domain.errors import (
    WRITE_REFUSALS,
    ErrorInfo,
    GatewayError,
    StorageRefused,
    StorageUnavailable,
    TurnTakenOver,
    TurnTooLarge,
)
from gateway.domain.events import (
    Event,
    InputRequired,
    ModelRetry,
    ToolFinished,
    TurnCancelled,
    TurnCompleted,
    TurnEnd,
    TurnFailed,
)
from gateway.domain.messages import (
    Answer,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    TurnOutcome,
    TurnRecord,
    Usage,
    text_block,
)
from gateway.ports.journal import Journal
from gateway.ports.model import ModelCall, ModelInfo
from gateway.ports.store import QuestionRepository
from gateway.ports.turns import TurnSlot, TurnSpending

log = get_logger(__name__)

_POLL_SECONDS = 2.0
DEFAULT_MAX_TURN_BYTES = 64 * 1024 * 1024
_WITHDRAWN = Answer("cancel", by="gateway")
"""Answer to an inline question whose server has stopped waiting."""
_CANNOT_ASK = "This call needs a person's answer, and a turn that is not stored cannot wait for one."


class ActiveTurn(TurnContext, TurnSpending):
    """A turn that runs here.

    It writes events to its log and its journal; subscribers read the log.
    """

    # With these in its dictionary, that would have more keys than instances can share, and five times the size. As it
    # would with keys that the first turns get after `__init__`.
    __slots__ = ("_lease", "cache_key", "failure", "inputs", "is_cached", "outcome", "slot", "stage", "task", "tasks")

    def __init__(
        self,
        record: TurnRecord,
        owner: Principal,
        turn_log: TurnLog,
        journal: Journal,
        questions: QuestionRepository,
        tasks: TurnTaskWaits,
        model: ModelInfo,
        budgets: Budgets,
        lease: WorkerLease,
        *,
        max_bytes: int = DEFAULT_MAX_TURN_BYTES,
    ) -> None:
        self.record = record
        self.id = record.id
        self.id_text = str(record.id)
        self.is_stored = record.request.store
        self._max_bytes = max_bytes
        self.principal = owner
        self.model = model
        self._budgets = budgets
        self.log = turn_log
        turn_log.on_failure = self._on_log_failure
        self.transcript = Transcript(record.request.follow_ups)
        self.taken_steps = record.request.origin.after_step if record.request.origin is not None else 0
        self.interrupted_step = self.recorded_calls = None
        self.direct_call = record.request.direct_call
        self.begins_call = self.direct_call is not None and not record.epoch
        self.inputs: list[StoredQuestion] = []
        self.failure: GatewayError | None = None
        self.cancel_reason: CancelReason | None = None
        self.task: asyncio.Task[None] | None = None
        self.takeover_error: GatewayError | None = None
        self.deadline: PausableTimeout | None = None
        self.has_new_answers = LightEvent()
        self._inline_questions: list[StoredQuestion] = []
        self._withdrawn_questions: list[StoredQuestion] = []
        self.stage: Literal["waiting", "running", "finishing"] = "waiting"
        self.started_at = time.perf_counter()
        self.first_token_ms: float | None = None
        self.cache_key: bytes | None = None
        self.is_cached = False
        self.outcome: TurnOutcome | None = None
        self.is_logged_by_request = False
        """Whether the log line of a request has the turn's end."""
        self.journal = journal
        self._questions = questions
        self.tasks = tasks
        self._lease = lease
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners = 0
        self.slot: TurnSlot | None = None

    @property
    def epoch(self) -> int:
        return self.record.epoch

    @property
    def tokens(self) -> int:
        return self.transcript.usage.total_tokens

    @property
    def usd(self) -> float:
        return self.transcript.cost_usd or 0.0

    # --- what the agent loop calls

    async def reserve_budget(self, call: ModelCall) -> None:
        await self._budgets.reserve(self, call)

    async def settle_budget(self) -> None:
        await self._budgets.settle(self)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.transcript.add_usage(usage, cost_usd)

    def calculate_cost(self, usage: Usage) -> float | None:
        return self.model.calculate_cost(usage)

    def emit(self, event: Event) -> None:
        """Apply an event to the transcript, number it, and write it.

        Deltas are written with the next flush.
        """
        self.transcript.apply(event)
        self.journal.schedule_flush(self.log, at_once=self.log.append(event))

    async def wait_until_durable(self) -> None:
        await self.journal.flush(self.log)

    def require_lease(self) -> None:
        if self.is_stored and not self._lease.is_valid:
            self.give_up()
            raise TurnTakenOver

    def has_capacity(self) -> bool:
        return self.log.size <= self._max_bytes and not self.journal.is_backlogged

    async def wait_for_capacity(self) -> None:
        if self.log.size > self._max_bytes:
            raise TurnTooLarge(f"The events of this turn exceed {self._max_bytes:,} bytes.")
        if self.journal.is_backlogged:
            await self.journal.wait_for_capacity()

    def on_accepted(self) -> None:
        if not self._accepted.done():
            self.first_token_ms = self.elapsed_ms()
            self._accepted.set_result(None)

    # --- questions

    async def ask_questions(self, call_id: str, pending_input: PendingInput) -> None:
        if self.is_stored and pending_input.task is not None and not pending_input.questions:
            self.emit(await self.tasks.begin_wait(call_id, pending_input.task))
        elif self.is_stored:
            await self._show_questions(call_id, pending_input)
        else:
            self.emit(ToolFinished(call_id=call_id, outcome="denied", content=[text_block(_CANNOT_ASK)]))

    async def ask_inline(self, call_id: str, question: Question) -> Answer:
        if not self.is_stored:
            return Answer("decline", by="gateway")
        (stored_question,) = await self._show_questions(call_id, PendingInput((question,)))
        assert self.deadline is not None
        self._inline_questions.append(stored_question)
        try:
            with self.deadline.pause_timeout():
                answer = await self._wait_for_answer(stored_question)
        except asyncio.CancelledError:
            if self.cancel_reason is None:
                self._resolve_inline(stored_question, _WITHDRAWN)
            raise
        self._resolve_inline(stored_question, answer)
        return answer

    async def withdraw_questions(self, call_id: str) -> None:
        withdrawn = [stored for stored in self._inline_questions if stored.call_id == call_id]
        for stored in withdrawn:
            self._resolve_inline(stored, _WITHDRAWN)
        for stored in [stored for stored in self._withdrawn_questions if stored.call_id == call_id]:
            self._withdrawn_questions.remove(stored)
            try:
                await self._questions.answer_question(self.id, stored.id, _WITHDRAWN)
            except GatewayError as error:  # an answer that came too late changes nothing
                log.info("question_not_withdrawn", turn_id=str(self.id), code=error.code)

    def _resolve_inline(self, stored: StoredQuestion, answer: Answer) -> None:
        if stored in self._inline_questions:
            self._inline_questions.remove(stored)
            self.emit(build_input_resolved(stored, answer))
            if answer is _WITHDRAWN:
                self._withdrawn_questions.append(stored)

    @property
    def unanswered_input_ids(self) -> list[UUID]:
        """Ids of questions and waits that were open at the claim."""
        answered = {stored.id for stored in self.inputs if stored.answer is not None} | self.tasks.settled_ids
        return [input_id for input_id in self.transcript.open_input_ids if input_id not in answered]

    async def _show_questions(self, call_id: str, pending_input: PendingInput) -> list[StoredQuestion]:
        stored_questions = await self._questions.save_questions(
            self.id, call_id, pending_input, epoch=self.record.epoch
        )
        for stored, expires_at in stored_questions:
            question = stored.question
            assert question.kind != "host"  # a turn has no host
            self.emit(
                InputRequired(
                    input_id=str(stored.id),
                    call_id=call_id,
                    kind=question.kind,
                    message=question.message,
                    schema=question.schema,
                    url=question.url,
                    expires_at=expires_at.isoformat(timespec="seconds"),
                )
            )
        return [stored for stored, _ in stored_questions]

    async def _wait_for_answer(self, stored_question: StoredQuestion) -> Answer:
        """Wait for the answer.

        A bus message announces it; poll as well, because a message may be lost.
        """
        while True:
            self.has_new_answers.clear()
            try:
                if (answer := await self._questions.get_answer(self.id, stored_question.id)) is not None:
                    return answer
            except StorageUnavailable:
                log.warning("answer_poll_failed", turn_id=str(self.id))
            await wait_or_poll(self.has_new_answers, _POLL_SECONDS)

    # --- listeners and cancellation

    async def wait_until_accepted(self, seconds: float) -> None:
        """Wait until the model accepts the turn's first request.

        Returns also at the turn's end, and after `seconds`.

        Raises:
            GatewayError: the turn failed before the model produced output.
        """
        try:
            await wait_for_result(self._accepted, seconds)
        except TimeoutError:
            return
        if self.failure is not None and self.first_token_ms is None:
            raise self.failure

    def release_waiters(self) -> None:
        """Wake the callers of `wait_until_accepted`, because no more output follows."""
        if not self._accepted.done():
            self._accepted.set_result(None)

    def begin_finishing(self) -> None:
        """Release the turn's slot.

        A client that sees the end may send its next request at once.
        """
        self.stage = "finishing"
        self.release_slot()

    def release_slot(self) -> None:
        if self.slot is not None:
            self.slot.release()

    def add_listener(self) -> None:
        """Count a response that the turn runs for. Only `TurnService.listen_to_turn` does this."""
        self._listeners += 1

    def remove_listener(self) -> None:
        """Apply `on_disconnect` when the last listener leaves.

        The request's policy applies only to an unfinished turn.
        """
        self._listeners -= 1
        if not self._listeners and not self.log.has_ended and self.record.request.on_disconnect == "cancel":
            self.cancel("client_disconnected")

    def cancel(self, reason: CancelReason) -> None:
        """Stop the model call and the tools.

        Output that was already streamed stays.
        """
        if self.cancel_reason is None and self.stage != "finishing":
            self.cancel_reason = reason
            if self.stage == "running" and self.task is not None:
                self.task.cancel()  # a task that has not started checks `cancel_reason` itself

    def _on_log_failure(self, error: GatewayError) -> None:
        """Stop the turn, because its events cannot be stored."""
        self.cancel("storage_refused" if isinstance(error, WRITE_REFUSALS) and self.log.has_begun else "handed_over")

    def give_up(self) -> None:
        """Stop without an end.

        Another worker owns the turn or may claim it now.
        """
        self.log.close(StorageUnavailable.code)
        self.cancel("handed_over")

    def elapsed_ms(self) -> float:
        return round((time.perf_counter() - self.started_at) * 1000, 2)

    # --- the end

    def restore(self, progress: StoredProgress) -> None:
        """Load what another worker has stored."""
        self.tasks.restore_waits(progress.waits)
        self.log.load_entries(progress.events)
        self.inputs = progress.inputs
        for entry in progress.events:
            self.transcript.apply(entry.event)
        if self.is_stored:
            self.interrupted_step = self._find_interrupted_step()
        if self.interrupted_step is not None or not self.transcript.waits_for_input:
            self.log.reserve_sequence_gap()

    def discard_interrupted_step(self, usage: Usage | None = None) -> None:
        """Tell clients to discard the step that a takeover interrupted."""
        step, self.interrupted_step = self.interrupted_step, None
        if step is not None:
            self._discard_step(step, "takeover", usage)

    def _find_interrupted_step(self) -> int | None:
        return self.transcript.interrupted_step(structured=self.record.request.response_format is not None)

    def _discard_step(self, step: int, reason: str, usage: Usage | None = None) -> None:
        retry = ModelRetry(step=step, reason=reason, attempt=1, discard=True)
        if usage is not None:
            retry = msgspec.structs.replace(retry, usage=usage, cost_usd=self.calculate_cost(usage))
        self.emit(retry)

    def build_completed_event(self, finish_reason: str) -> TurnCompleted:
        usage = self.transcript.usage
        return TurnCompleted(
            finish_reason=finish_reason,
            usage=usage,
            steps=self.transcript.steps,
            duration_ms=self.elapsed_ms(),
            first_token_ms=self.first_token_ms,
            cost_usd=self.transcript.cost_usd,
            tokens_per_second=usage.tokens_per_second,
            cached=self.is_cached,
        )

    def record_failure(self, error: GatewayError) -> TurnFailed:
        """Build the end of a failed turn.

        `wait_until_accepted` raises the error.
        """
        self.discard_interrupted_step()
        self.failure = error
        return TurnFailed(error=error.to_error_info(), saved=self._get_saved_part())

    def drop_refused_content(self, error: GatewayError, *, all_steps: bool = False) -> TurnFailed:
        """Return to the stored events, and build the turn's failure `error`.

        The database refuses the content of the others. Clients discard the step of which they may have seen more; with
        `all_steps`, everything.
        """
        stored = self.log.drop_undurable()
        usage, cost_usd = self.transcript.usage, self.transcript.cost_usd
        self.transcript = Transcript(self.record.request.follow_ups)
        for entry in stored:
            self.transcript.apply(entry.event)
        self.transcript.usage, self.transcript.cost_usd = usage, cost_usd
        interrupted = self._find_interrupted_step()
        steps = {*self.transcript.list_steps()} if all_steps else set[int]()
        for step in sorted(steps | ({interrupted} if interrupted is not None else set())):
            self._discard_step(step, error.code)
        return self.record_failure(error)

    def build_cancelled_event(self) -> TurnCancelled | TurnFailed | None:
        """Build the end of a cancelled turn.

        None if another worker continues it.
        """
        assert self.cancel_reason is not None
        if self.cancel_reason == "handed_over":
            return None
        if self.cancel_reason == "storage_refused":
            return self.drop_refused_content(self.log.failure or StorageRefused())
        self.discard_interrupted_step()
        error = ErrorInfo(code=self.cancel_reason, message=CANCEL_MESSAGES[self.cancel_reason])
        return TurnCancelled(error=error, saved=self._get_saved_part())

    def build_outcome(self, end: TurnEnd) -> TurnOutcome:
        """Build the outcome that the journal stores at the turn's end."""
        transcript = self.transcript
        failure = end if isinstance(end, TurnFailed | TurnCancelled) else None
        return TurnOutcome(
            status="completed" if failure is None else "failed" if isinstance(failure, TurnFailed) else "cancelled",
            messages=self.record.request.messages + transcript.messages,
            response=transcript.response,
            steps=transcript.steps,
            usage=transcript.usage,
            duration_ms=self.elapsed_ms(),
            finish_reason=end.finish_reason if isinstance(end, TurnCompleted) else None,
            error=failure.error if failure else None,
            cost_usd=transcript.cost_usd,
            first_token_ms=self.first_token_ms,
            cached=self.is_cached,
            prompt=self.record.request.prompt,
        )

    def _get_saved_part(self) -> Literal["text", "prompt", "nothing"]:
        return "nothing" if not self.is_stored else "text" if self.transcript.response else "prompt"
