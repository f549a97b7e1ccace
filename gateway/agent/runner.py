"""Starts, resumes and stops the turns of this process, see docs/adr/0001."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec

from gateway.agent.branches.origins import TurnOrigins, add_taken_events, make_origin_note
from gateway.agent.budgets import Budgets
from gateway.agent.following.cancel_reasons import HandOverReason
from gateway.agent.following.end_fields import list_end_fields
from gateway.agent.loop import AgentLoop
from gateway.agent.prompt import PromptBuilder
from gateway.agent.response_cache import TurnResponseCache
from gateway.agent.runner_config import RunnerConfig, RunnerStorage
from gateway.agent.starting.plan import TurnPlan, TurnPlanner
from gateway.agent.starting.takeover import StoredProgress
from gateway.agent.tasks.waits import TASK_WAIT, TurnTaskWaits
from gateway.agent.turn import ActiveTurn
from gateway.agent.turn_log import TurnLog
from gateway.common.concurrency import TaskSet, wait_for_result
from gateway.common.lease import WorkerLease
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.caller_token import strip_secrets
from gateway.domain.errors import (
    WRITE_REFUSALS,
    GatewayError,
    Overloaded,
    ServerStopping,
    StorageUnavailable,
    TooManyAttempts,
    TurnLost,
    TurnTakenOver,
    TurnTimeout,
)
from gateway.domain.events import Event, TurnCompleted, TurnEnd, TurnStarted
from gateway.domain.messages import MAX_ATTEMPTS, Principal, TurnOutcome, TurnRecord, TurnRequest
from gateway.domain.toolsets import bind_toolset
from gateway.ports.model import ModelCatalog, ModelInfo
from gateway.ports.store import ConversationState
from gateway.ports.tools import Toolbox
from gateway.ports.turns import TurnSlots

log = get_logger(__name__)

_HAND_OVER_SECONDS = 2.0


class Runner:
    """The turns that run in this process."""

    def __init__(
        self,
        config: RunnerConfig,
        loop: AgentLoop,
        storage: RunnerStorage,
        *,
        models: ModelCatalog,
        toolbox: Toolbox,
        budgets: Budgets,
        lease: WorkerLease,
        slots: TurnSlots,
    ) -> None:
        self._config, self._slots = config, slots
        self._loop = loop
        self._storage = storage
        self._models = models
        self._budgets = budgets
        self._lease = lease
        tools = config.create_tool_selector(toolbox)
        self._prompts = PromptBuilder(toolbox, storage.conversations, config.system_prompt, config.tokenizer)
        self.planner = TurnPlanner(models, tools, self._prompts, config.default_parameters, config.images)
        self._responses = TurnResponseCache(storage.responses)
        self._origins = TurnOrigins(storage.turns)
        self._turns: dict[UUID, ActiveTurn] = {}
        self._tasks = TaskSet("turn")
        self.is_stopping = False

    @property
    def running_turns(self) -> int:
        return len(self._turns)

    def get(self, turn_id: UUID) -> ActiveTurn | None:
        return self._turns.get(turn_id)

    def is_busy_with(self, turn_id: UUID) -> bool:
        """Return whether the turn runs here, or has pending writes."""
        return turn_id in self._turns or self._storage.journal.is_writing(turn_id)

    # --- starting

    async def start(
        self,
        request: TurnRequest,
        principal: Principal,
        open_conversation: Callable[[], Awaitable[ConversationState]],
        request_id: str | None = None,
    ) -> ActiveTurn:
        """Start a turn.

        On return, its start is durable and its task runs. If the database is unlikely to refuse the turn, the model is
        called before the commit, but its output becomes visible only after it. See docs/adr/0017.

        Raises:
            GatewayError: the request cannot be served; nothing of it was stored.
        """
        if self.is_stopping:
            raise ServerStopping
        if self.running_turns >= self._config.max_turns:
            raise Overloaded(f"The gateway already runs {self._config.max_turns} turns. Try again shortly.")
        if not self._lease.is_valid:
            raise StorageUnavailable
        model, request, request_warnings = await self.planner.resolve_request(request, principal)
        principal = bind_toolset(principal, request.toolset)
        taken_events = await self._origins.load_taken_steps(request)
        await self._budgets.check_remaining(principal)
        turn_id = self._config.create_turn_id()
        slot = await self._slots.acquire_turn_slot(turn_id, principal)
        try:
            conversation = await open_conversation()
            record = TurnRecord(
                id=turn_id,
                owner=principal.user,
                request=request,
                model=model.id,
                conversation_id=conversation.id,
                request_id=request_id,
                caller=strip_secrets(principal) if principal.key is not None else None,
                trace_context=self._config.get_trace_context and self._config.get_trace_context(),
            )
            turn = self._create_turn(record, principal, model)
            turn.slot = slot
            plan = await self.planner.plan_turn(turn)
            self._write_start(turn, plan, conversation.name, request_warnings, taken_events)
            await self._begin_turn(turn, plan)
        except BaseException:
            if slot is not None:
                slot.release()
            raise
        return turn

    def _write_start(
        self,
        turn: ActiveTurn,
        plan: TurnPlan,
        conversation: str | None,
        warnings: tuple[str, ...],
        taken_events: list[Event],
    ) -> None:
        """Write the first events of a new turn."""
        request = turn.record.request
        turn.log.append(
            TurnStarted(
                turn_id=turn.id_text,
                conversation_id=conversation,
                model=turn.model.id,
                tools=tuple(spec.name for spec in plan.selection.tools),
                warnings=(*request.warnings, *warnings, *plan.warnings),
                origin=make_origin_note(request.origin),
                history=plan.prepared.window.note if plan.prepared is not None else msgspec.UNSET,
            )
        )
        add_taken_events(taken_events, turn.transcript, turn.log)

    async def _begin_turn(self, turn: ActiveTurn, plan: TurnPlan) -> None:
        self._turns[turn.id] = turn
        if starts_early := self._can_start_before_commit(turn):
            self._spawn_task(turn, plan)
        try:
            await turn.journal.begin_turn(turn.record, turn.log)
        except BaseException:
            self._turns.pop(turn.id, None)
            turn.cancel("handed_over")  # ends it without an event
            raise
        if not starts_early:
            self._spawn_task(turn, plan)

    def _can_start_before_commit(self, turn: ActiveTurn) -> bool:
        """Return whether the model may be called before the commit.

        The commit is that of the turn's row. See docs/adr/0017.
        """
        request = turn.record.request
        # The history is read through the turn's row.
        no_history = turn.record.conversation_id is None and request.parent_turn_id is None
        no_conflict = turn.is_stored and request.idempotency_key is None and request.cache_ttl is None
        return (
            no_history
            and no_conflict
            and not turn.journal.is_unavailable
            and not self._budgets.applies_to(turn.principal)
        )

    def take_over(self, record: TurnRecord, progress: StoredProgress, *, cancel: bool) -> None:
        """Continue a claimed turn of another worker, or a suspended one."""
        model, _ = self._models.resolve(record.model)
        turn = self._create_turn(record, record.principal, model)
        plan = self.planner.plan_takeover(turn)
        turn.restore(progress)
        if not turn.is_stored:
            turn.takeover_error = TurnLost()
        elif record.attempts >= MAX_ATTEMPTS:
            turn.takeover_error = TooManyAttempts()
        if cancel:
            turn.cancel("cancelled")
        log.info("turn_taken_over", turn_id=str(turn.id), steps=turn.transcript.steps, cancel=cancel)
        self._turns[turn.id] = turn
        self._spawn_task(turn, plan)

    def _create_turn(self, record: TurnRecord, principal: Principal, model: ModelInfo) -> ActiveTurn:
        synchronous = self._config.synchronous_journal
        turn_log = TurnLog(record.id, epoch=record.epoch, attempts=record.attempts, synchronous=synchronous)
        journal = self._storage.journal if record.request.store else self._storage.ephemeral_journal
        return ActiveTurn(
            record,
            principal,
            turn_log,
            journal,
            self._storage.questions,
            TurnTaskWaits(record, self._storage.tasks),
            model,
            self._budgets,
            self._lease,
            max_bytes=self._config.max_turn_bytes,
        )

    def _spawn_task(self, turn: ActiveTurn, plan: TurnPlan) -> None:
        turn.task = self._tasks.spawn(self._run_turn(turn, plan), name=f"turn {turn.id_text}")

    # --- bus messages

    def on_cancel(self, message: BusMessage) -> None:
        """Cancel the turn if it runs here."""
        if (turn := self._turns.get(message.turn_id)) is not None:
            turn.cancel("cancelled")

    def on_retried(self, message: BusMessage) -> None:
        """Let the turn run to its end.

        Its client follows it at another worker.
        """
        if (turn := self._turns.get(message.turn_id)) is not None:
            turn.add_listener()

    def on_answer(self, message: BusMessage) -> None:
        """Wake a call that waits for an answer."""
        if (turn := self._turns.get(message.turn_id)) is not None:
            turn.has_new_answers.set()

    def on_watch(self, message: BusMessage) -> None:
        """Announce each commit of the turn from now on.

        Another worker follows the turn, and asks again whenever it finds no new events. Only the first request is
        answered: with an answer to each, the two would ask and answer each other without a pause.
        """
        turn = self._turns.get(message.turn_id)
        if turn is not None and turn.log.on_commit is None:
            bus, notification = self._storage.bus, BusMessage(BusKind.TURN_EVENTS, turn.id)
            turn.log.on_commit = lambda: bus.publish(notification)
            bus.publish(notification)

    # --- stopping

    async def stop(self, grace: float) -> None:
        """Refuse new turns, drain the running ones, hand over the rest.

        Running turns have `grace` seconds to end. Readers of the remaining turns are notified first. Without another
        worker, the next start resumes the turns.
        """
        self.is_stopping = True
        if self._tasks:
            log.info("turns_drain_started", running=len(self._tasks), grace_seconds=grace)
            await self._tasks.wait(grace)
        remaining = await self.hand_over("server_stopping")
        try:
            await self._storage.workers.release_turns(remaining)
            await self._storage.workers.deregister()
        except GatewayError as error:
            log.warning("turn_release_failed", turns=len(remaining), code=error.code)
        for turn_id in remaining:
            self._storage.bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn_id))

    async def hand_over(self, reason: HandOverReason) -> list[UUID]:
        """Stop every turn without ending it.

        Another worker resumes it from the journal. Returns the ids of the stored turns. Turns that are not stored are
        cancelled.
        """
        turns = [turn for turn in self._turns.values() if turn.stage != "finishing"]
        for turn in turns:
            if turn.is_stored:
                turn.log.close(reason)
            turn.cancel("handed_over" if turn.is_stored else reason)
        tasks = [turn.task for turn in turns if turn.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_HAND_OVER_SECONDS)
            await asyncio.wait([turn.journal.flush(turn.log) for turn in turns], timeout=_HAND_OVER_SECONDS)
        return [turn.id for turn in turns if turn.is_stored]

    def give_up_turns(self) -> list[UUID]:
        """Stop every stored turn and return their ids.

        Other workers may claim them now. Turns that are not stored run on: no other worker can continue them.
        """
        turns = [turn for turn in self._turns.values() if turn.is_stored and turn.stage != "finishing"]
        for turn in turns:
            turn.give_up()
        return [turn.id for turn in turns]

    # --- one turn's task

    async def _run_turn(self, turn: ActiveTurn, plan: TurnPlan) -> None:
        turn.stage = "running"
        try:
            end = await self._run_to_outcome(turn, plan)
            if end is not None:
                await self._finish_turn(turn, end)
            elif turn.cancel_reason is None:
                await self._suspend_turn(turn)
        finally:
            turn.release_waiters()
            turn.release_slot()
            turn.log.on_failure = None  # ends the reference cycle of turn and log, see docs/adr/0007
            if self._turns.get(turn.id) is turn:  # a suspended turn may run here again
                del self._turns[turn.id]

    async def _run_to_outcome(self, turn: ActiveTurn, plan: TurnPlan) -> TurnEnd | None:
        """Run the loop and return the event that ends the turn.

        None if the turn continues elsewhere. Every exception becomes such an event.
        """
        turn.deadline = deadline = PausableTimeout(self._config.get_timeout(turn.record.request))
        if turn.cancel_reason is not None:
            return turn.build_cancelled_event()
        if turn.takeover_error is not None:
            return turn.record_failure(turn.takeover_error)
        try:
            if turn.slot is None:
                turn.slot = await self._slots.wait_for_turn_slot(turn.id, turn.principal)
            async with deadline:
                plan = await self.planner.complete_takeover(turn, plan)
                context = await self._prompts.build_context(
                    turn.record,
                    turn.principal,
                    turn.model,
                    plan.selection,
                    prepared=plan.prepared,
                    made_summary=turn.transcript.history_summary,
                )
                turn.recorded_calls = await self._origins.load_recorded_calls(turn.record.request, turn.transcript)
                turn.discard_interrupted_step(self._loop.estimate_interrupted_usage(context, turn))
                finish_reason = await self._responses.replay(turn, context) or await self._loop.run_turn(context, turn)
            if finish_reason is None:
                return None
            self._responses.discard_uncacheable(turn, finish_reason, plan.selection)
        except asyncio.CancelledError:
            if turn.cancel_reason is None:
                raise
            return turn.build_cancelled_event()
        except TurnTakenOver:
            turn.give_up()
            return None
        except GatewayError as error:
            return turn.record_failure(error) if turn.log.failure is None else turn.build_cancelled_event()
        except Exception:  # without an end, the turn's readers would wait for ever
            if deadline.has_expired:
                seconds = self._config.get_timeout(turn.record.request)
                return turn.record_failure(TurnTimeout(f"The turn exceeded its time limit of {seconds:g} seconds."))
            log.exception("turn_crashed", turn_id=str(turn.id))
            return turn.record_failure(GatewayError())
        return turn.build_completed_event(finish_reason)

    async def _suspend_turn(self, turn: ActiveTurn) -> None:
        """Suspend the turn until an answer or a settled task.

        From then on it exists only in the database.
        """
        turn.begin_finishing()
        # Not those whose answer this run has seen: the turn would wake, and wait for the others of the call, for ever.
        open_inputs = turn.unanswered_input_ids
        try:
            await turn.journal.suspend_turn(turn.log, open_inputs)
        except WRITE_REFUSALS as refusal:
            await self._finish_turn(turn, turn.drop_refused_content(refusal))
            return
        except (StorageUnavailable, TurnTakenOver) as error:
            log.warning("turn_not_suspended", turn_id=str(turn.id), code=error.code)
            return
        turn.log.close(TASK_WAIT if turn.transcript.waits_for_tasks_only else "input_required")
        log.info("turn_suspended", turn_id=str(turn.id))
        try:
            if await self._storage.questions.wake_if_answered(turn.id, open_inputs):
                self._storage.bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn.id))
        except GatewayError as error:
            log.warning("turn_wake_failed", turn_id=str(turn.id), code=error.code)

    async def _finish_turn(self, turn: ActiveTurn, end: TurnEnd) -> None:
        """Store the turn's end, then show it.

        If the database refuses the content, store and show a failure without it. If it refuses that as well, or takes
        too long, show no end: the log closes.
        """
        turn.begin_finishing()
        if isinstance(end, TurnCompleted):
            await self._responses.save(turn)
        try:
            await turn.tasks.abandon_open_waits(end, turn.transcript)
            outcome = await self._store_end(turn, end)
        except WRITE_REFUSALS as refusal:
            end = turn.drop_refused_content(refusal, all_steps=True)
            try:
                outcome = await self._store_end(turn, end)
            except GatewayError as error:
                turn.log.close(error.code)
                log.error("turn_end_not_stored", turn_id=str(turn.id), code=error.code)
                return
        except (StorageUnavailable, TurnTakenOver) as error:
            log.warning("turn_end_not_stored", turn_id=str(turn.id), code=error.code)
            return
        if not turn.is_logged_by_request:
            log.info(f"turn_{outcome.status}", **list_end_fields(turn.id_text, turn.record.model, outcome))

    async def _store_end(self, turn: ActiveTurn, end: TurnEnd) -> TurnOutcome:
        """Store the turn's end with its outcome.

        Raises:
            StorageRefused, StorageInternalError: the database refuses the content.
            StorageUnavailable, TurnTakenOver: this worker cannot store it. The log is closed.
        """
        turn.log.append(end)
        outcome = turn.outcome = turn.build_outcome(end)
        stored = turn.journal.finish_turn(turn.log, outcome)
        try:
            await wait_for_result(stored, self._config.storage_timeout)
        except TimeoutError:
            turn.log.close(StorageUnavailable.code)
            raise StorageUnavailable from None
        return outcome
