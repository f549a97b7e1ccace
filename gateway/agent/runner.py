"""Owns every running turn: its task, its events, its end. A response is a reader of the turn, never its owner."""

import asyncio
import time
from typing import Literal
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids

from gateway.agent import prompt
from gateway.agent.batch_tool import batch_spec
from gateway.agent.budgets import Budgets
from gateway.agent.loop import AgentLoop, ModelContext
from gateway.agent.response_cache import cache_key, is_cacheable, replay
from gateway.agent.structured_output import OutputSchema
from gateway.agent.tool_calls import turn_of_call
from gateway.agent.tool_search import ToolSelection, select_tools
from gateway.agent.transcript import Transcript
from gateway.agent.turn_log import TurnLog
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import Deadline
from gateway.domain.errors import (
    ErrorInfo,
    Forbidden,
    GatewayError,
    Overloaded,
    ServerStopping,
    StorageUnavailable,
    TurnLost,
    TurnTimeout,
)
from gateway.domain.events import (
    Entry,
    Event,
    InputRequired,
    InputResolved,
    ToolFinished,
    TurnCancelled,
    TurnCompleted,
    TurnEnd,
    TurnFailed,
    TurnStarted,
)
from gateway.domain.messages import (
    Answer,
    BusMessage,
    InputNeeded,
    KeptInput,
    Message,
    Principal,
    Question,
    ToolSpec,
    TurnOutcome,
    TurnRecord,
    TurnRequest,
    Usage,
    text_block,
)
from gateway.ports.model import ModelCall, ModelInfo, Models
from gateway.ports.store import Bus, ConversationRepository, Journal, QuestionRepository, ResponseCache, TurnRepository
from gateway.ports.tools import Toolbox

log = get_logger(__name__)

CancelReason = Literal["client_disconnected", "cancelled", "handed_over", "server_stopping"]
_CANCEL_MESSAGES: dict[CancelReason, str] = {
    "client_disconnected": "The client went away, and the turn was not asked to go on without it.",
    "cancelled": "The turn was cancelled.",
    "handed_over": "Another worker goes on with the turn.",
    "server_stopping": "The gateway stopped, and of a turn that is not kept nobody can go on.",
}
_LOOK_SECONDS = 2.0
_CACHE_PATIENCE = 2.0
_NOBODY_TO_ASK = "This call needs a person's answer, and a turn that is not kept cannot wait for one."


class ActiveTurn:
    """One turn under way. Emits events into its log and its journal; others read the log."""

    def __init__(
        self,
        record: TurnRecord,
        owner: Principal,
        turn_log: TurnLog,
        journal: Journal,
        inputs: QuestionRepository,
        model: ModelInfo,
        budgets: Budgets,
    ) -> None:
        self.record = record
        self.principal = owner
        self.model = model
        self._budgets = budgets
        self.log = turn_log
        self.transcript = Transcript()
        self.inputs: list[KeptInput] = []
        self.failure: GatewayError | None = None
        self.cancel_reason: CancelReason | None = None
        self.task: asyncio.Task[None] | None = None
        self.lost = False
        self.deadline: Deadline | None = None
        self.answers_came = asyncio.Event()
        self.stage: Literal["waiting", "running", "finishing"] = "waiting"
        self.started_at = time.perf_counter()
        self.first_token_ms: float | None = None
        self.cache_key: bytes | None = None
        self.cached = False
        self.journal = journal
        self._inputs = inputs
        self._opened = asyncio.Event()
        self._audience = 0

    @property
    def id(self) -> UUID:
        return self.record.id

    @property
    def tokens(self) -> int:
        return self.transcript.usage.total_tokens

    @property
    def usd(self) -> float:
        return self.transcript.cost_usd or 0.0

    async def reserve_budget(self, call: ModelCall) -> None:
        await self._budgets.reserve(self, call)

    async def settle(self) -> None:
        await self._budgets.settle(self)

    def wasted(self, usage: Usage, cost_usd: float | None) -> None:
        self.transcript.spend(usage, cost_usd)

    def cost(self, usage: Usage) -> float | None:
        return self.model.cost(usage)

    @property
    def kept(self) -> bool:
        """Whether others can go on with the turn, and read it later."""
        return self.record.request.store

    def emit(self, event: Event) -> None:
        """Number the event, fold it, show it when it may be seen."""
        self.transcript.apply(event)
        self.log.append(event)
        if self.log.all_visible:
            self.journal.schedule_flush(self.log)
        else:
            self.journal.flush(self.log)

    async def durable(self) -> None:
        await self.journal.flush(self.log)

    async def ask(self, call_id: str, needed: InputNeeded) -> None:
        if self.kept:
            await self._show(call_id, needed)
        else:
            self.emit(ToolFinished(call_id=call_id, outcome="denied", content=[text_block(_NOBODY_TO_ASK)]))

    async def ask_now(self, call_id: str, question: Question) -> Answer:
        if not self.kept:
            return Answer("decline", by="gateway")
        (asked,) = await self._show(call_id, InputNeeded((question,)))
        assert self.deadline is not None
        with self.deadline.standing_still():
            answer = await self._answer_to(asked)
        self.emit(
            InputResolved(
                input_id=str(asked.id), call_id=call_id, action=answer.action, content=answer.content, by=answer.by
            )
        )
        return answer

    async def _show(self, call_id: str, needed: InputNeeded) -> list[KeptInput]:
        asked = await self._inputs.ask(self.id, call_id, needed)
        for kept, expires_at in asked:
            question = kept.question
            self.emit(
                InputRequired(
                    input_id=str(kept.id), call_id=call_id, kind=question.kind, message=question.message,
                    schema=question.schema, url=question.url, expires_at=expires_at.isoformat(timespec="seconds"),
                )
            )  # fmt: skip
        return [kept for kept, _ in asked]

    async def _answer_to(self, asked: KeptInput) -> Answer:
        """Told by the bus, and looked for now and then: a message may get lost."""
        while True:
            self.answers_came.clear()
            try:
                if (answer := await self._inputs.answer_to(self.id, asked.id)) is not None:
                    return answer
            except StorageUnavailable:
                log.warning("answer_waits_for_database", turn_id=str(self.id))
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.answers_came.wait()
            except TimeoutError:
                continue

    async def drain(self) -> None:
        if self.journal.is_backlogged:
            await self.journal.wait_for_capacity()

    def opened(self) -> None:
        if not self._opened.is_set():
            self.first_token_ms = self.elapsed_ms()
            self._opened.set()

    async def until_opened(self, seconds: float) -> None:
        """Return when the model has begun to answer, or the turn has ended, or the time is up.

        Raises:
            GatewayError: the turn failed before the model said anything.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._opened.wait()
        except TimeoutError:
            return
        if self.failure is not None and self.first_token_ms is None:
            raise self.failure

    def ended(self) -> None:
        """Nothing more will come: let those go who wait for a beginning."""
        self._opened.set()

    def join(self) -> None:
        """Someone reads for whose sake the turn runs."""
        self._audience += 1

    def leave(self) -> None:
        """One of those is gone. When the last one leaves before the end, the request's policy decides."""
        self._audience -= 1
        if not self._audience and not self.log.ended and self.record.request.on_disconnect == "cancel":
            self.cancel("client_disconnected")

    def cancel(self, reason: CancelReason) -> None:
        """Stop the model call and the tools; what was streamed so far is kept."""
        if self.cancel_reason is None and self.stage != "finishing":
            self.cancel_reason = reason
            if self.stage == "running" and self.task is not None:
                self.task.cancel()  # one that has not begun looks at the reason before it does

    def elapsed_ms(self) -> float:
        return round((time.perf_counter() - self.started_at) * 1000, 2)


class Runner:
    """Starts turns, knows those that run here, and ends them in order."""

    def __init__(
        self,
        loop: AgentLoop,
        *,
        models: Models,
        toolbox: Toolbox,
        journal: Journal,
        no_journal: Journal,
        history: ConversationRepository,
        kept: TurnRepository,
        inputs: QuestionRepository,
        responses: ResponseCache,
        bus: Bus,
        worker_id: UUID,
        system_prompt: str | None = None,
        deadline: float = 120.0,
        storage_patience: float = 30.0,
        max_turns: int = 2_000,
        synchronous_journal: bool = False,
        tool_tokens: int = 24_000,
        batches: bool = False,
        budgets: Budgets,
    ) -> None:
        self._budgets = budgets
        self._loop = loop
        self._models = models
        self._toolbox = toolbox
        self._journal = journal
        self._no_journal = no_journal
        self._history = history
        self._kept = kept
        self._inputs = inputs
        self._responses = responses
        self._bus = bus
        self._system_prompt = system_prompt or prompt.SYSTEM_PROMPT
        self._deadline = deadline
        self._storage_patience = storage_patience
        self._max_turns = max_turns
        self._synchronous = synchronous_journal
        self._tool_tokens = tool_tokens
        self._batches = batches
        self._worker_id = worker_id
        self._turns: dict[UUID, ActiveTurn] = {}
        self.stopping = False

    @property
    def running(self) -> int:
        return len(self._turns)

    def get(self, turn_id: UUID) -> ActiveTurn | None:
        return self._turns.get(turn_id)

    async def start(self, request: TurnRequest, principal: Principal, request_id: str | None = None) -> ActiveTurn:
        """Begin a turn; when this returns its start is durable and its task runs. Where nothing is likely to refuse it,
        the model is asked while its start is being written; nothing of the answer is seen before that is durable.

        Raises:
            GatewayError: the request cannot be served; nothing of it was kept.
        """
        if self.stopping:
            raise ServerStopping
        if self.running >= self._max_turns:
            raise Overloaded(f"The gateway already runs {self._max_turns} turns. Try again shortly.")
        model, warnings = self._models.resolve(request.model)
        if not principal.may_ask(model.id):
            raise Forbidden(f"Your key does not allow the model {model.id!r}.", param="model")
        parameters, dropped = self._models.fit(request.parameters, model, drop=request.drop_unsupported)
        request = msgspec.structs.replace(request, parameters=parameters)
        if request.response_format is not None:
            OutputSchema(request.response_format)
        await self._budgets.check(principal)
        conversation_id = await self._history.open(request, principal)
        turn_id = UUID(int=uuids.uuid7().int)
        record = TurnRecord(
            id=turn_id,
            owner=principal.user,
            request=request,
            model=model.id,
            conversation_id=conversation_id,
            request_id=request_id,
            caller=msgspec.structs.replace(principal, headers={}) if principal.key is not None else None,
        )
        turn_log = TurnLog(turn_id, synchronous=self._synchronous)
        turn = self._turn(record, principal, turn_log, model)
        offered, missing = self._offer(request, principal)
        offered = self._with_batch(offered, model)
        turn.log.append(
            TurnStarted(
                turn_id=str(turn_id),
                conversation_id=str(conversation_id) if conversation_id else None,
                model=model.id,
                tools=tuple(spec.name for spec in offered.tools),
                warnings=(*request.warnings, *warnings, *dropped, *missing),
            )
        )
        self._turns[turn_id] = turn
        if ahead := self._may_run_ahead(turn):
            self._set_off(turn, model, offered)
        try:
            await turn.journal.begin(record, turn.log)
        except BaseException:
            self._turns.pop(turn_id, None)
            turn.cancel("handed_over")  # ends it without a word
            raise
        if not ahead:
            self._set_off(turn, model, offered)
        return turn

    def _may_run_ahead(self, turn: ActiveTurn) -> bool:
        """Whether the turn's row is neither likely to be refused nor needed before the model has answered."""
        request = turn.record.request
        alone = turn.record.conversation_id is None and request.parent_turn_id is None  # its past is found by its row
        plain = turn.kept and request.idempotency_key is None and request.cache_ttl is None
        return alone and plain and not turn.journal.is_unavailable and not self._budgets.applies_to(turn.principal)

    def _set_off(self, turn: ActiveTurn, model: ModelInfo, offered: ToolSelection) -> None:
        turn.task = asyncio.create_task(self._run(turn, model, offered), name=f"turn {turn.id}")

    def take_over(self, record: TurnRecord, events: list[Entry], inputs: list[KeptInput], *, cancel: bool) -> None:
        """Go on with a turn that is claimed for this worker: another had begun it, or it has waited for a person."""
        model, _ = self._models.resolve(record.model)
        principal = record.caller or Principal(user=record.owner)
        offered, _ = self._offer(record.request, principal)
        offered = self._with_batch(offered, model)
        turn_log = TurnLog(record.id, synchronous=self._synchronous)
        turn_log.adopt(events)
        turn = self._turn(record, principal, turn_log, model)
        turn.inputs = inputs
        for entry in events:
            turn.transcript.apply(entry.event)
        if not turn.transcript.waits:
            turn_log.reserve_sequence_gap()
        turn.lost = not turn.kept
        if cancel:
            turn.cancel("cancelled")
        log.info("turn_taken_over", turn_id=str(turn.id), steps=turn.transcript.steps, cancel=cancel)
        self._turns[turn.id] = turn
        self._set_off(turn, model, offered)

    def _turn(self, record: TurnRecord, principal: Principal, turn_log: TurnLog, model: ModelInfo) -> ActiveTurn:
        journal = self._journal if record.request.store else self._no_journal
        return ActiveTurn(record, principal, turn_log, journal, self._inputs, model, self._budgets)

    def heard(self, message: BusMessage) -> None:
        """What another worker (or this one) tells of a turn that may run here."""
        turn = self._turns.get(message.turn_id)
        if turn is None:
            return
        if message.kind == "cancel":
            turn.cancel("cancelled")
        elif message.kind == "orphan":
            turn.answers_came.set()
        elif message.kind == "watch":
            news = BusMessage("events", turn.id)
            turn.log.on_commit = lambda: self._bus.publish(news)
            self._bus.publish(news)

    async def stop(self, grace: float) -> None:
        """Take no new turns, let the running ones end for `grace` seconds, then leave the rest to other workers.

        Their readers are told first. Without another worker, the next start goes on with them.
        """
        self.stopping = True
        tasks = [turn.task for turn in self._turns.values() if turn.task is not None]
        if tasks:
            log.info("turns_finishing", running=len(tasks), grace_seconds=grace)
            await asyncio.wait(tasks, timeout=grace)
        left = await self.hand_over("server_stopping")
        try:
            await self._kept.release(self._worker_id, left)
            await self._kept.deregister(self._worker_id)
        except StorageUnavailable:
            log.warning("turns_left_to_be_found", turns=len(left))
        for turn_id in left:
            self._bus.publish(BusMessage("orphan", turn_id))

    async def hand_over(self, reason: str) -> list[UUID]:
        """Stop running, without ending them: what has happened is kept, and others go on from there."""
        turns = [turn for turn in self._turns.values() if turn.stage != "finishing"]
        for turn in turns:
            if turn.kept:
                turn.log.close(reason)
            turn.cancel("handed_over" if turn.kept else "server_stopping")
        tasks = [turn.task for turn in turns if turn.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=2)
            await asyncio.wait([turn.journal.flush(turn.log) for turn in turns], timeout=2)
        return [turn.id for turn in turns if turn.kept]

    def _offer(self, request: TurnRequest, principal: Principal) -> tuple[ToolSelection, tuple[str, ...]]:
        """The tools on offer to this turn, and a warning for each that was asked for and is not there.

        A tool that the client brings stands before one of ours of the same name.
        """
        own = {spec.name for spec in request.client_tools}
        specs = self._toolbox.specs()
        if own or request.approve or not principal.may_use_all:
            specs = tuple(
                msgspec.structs.replace(spec, approval="always") if spec.name in request.approve else spec
                for spec in specs
                if spec.name not in own and principal.may_use(spec)
            )
        if request.tools is None:
            return self._fitting(specs + request.client_tools, request), ()
        missing = sorted(set(request.tools) - {spec.name for spec in specs} - own)
        warnings = tuple(f"The tool {name!r} is not on offer: no connected server has it now." for name in missing)
        chosen = tuple(spec for spec in specs if spec.name in request.tools) + request.client_tools
        return self._fitting(chosen, request), warnings

    def _with_batch(self, offered: ToolSelection, model: ModelInfo) -> ToolSelection:
        """For a model that makes one call a step, a tool that makes several, if the administrator wants that."""
        if not self._batches or model.parallel_calls or (spec := batch_spec(offered.tools)) is None:
            return offered
        return msgspec.structs.replace(offered, tools=(*offered.tools, spec))

    def _fitting(self, specs: tuple[ToolSpec, ...], request: TurnRequest) -> ToolSelection:
        choice = request.tool_choice
        named = [str(choice["function"]["name"])] if isinstance(choice, dict) else []
        return select_tools(specs, always=named, max_tokens=self._tool_tokens)

    async def _conversation(self, turn: ActiveTurn, model: ModelInfo, offered: ToolSelection) -> ModelContext:
        request, conversation_id = turn.record.request, turn.record.conversation_id
        instructions = self._toolbox.instructions() if any(not spec.client for spec in offered.tools) else ""
        messages = await self._with_hidden_work(request.messages, turn.record.owner)
        fixed = [prompt.system_message(self._system_prompt, instructions, request.system), *messages]
        past: tuple[Message, ...] = ()
        if request.parent_turn_id is not None or (conversation_id is not None and request.conversation_id != "new"):
            history = await self._history.load(turn.id)
            past = prompt.fit_history(history, fixed, model, request.parameters.max_tokens)
        return ModelContext(
            model=model.id,
            messages=prompt.fill_missing_results((fixed[0], *past, *fixed[1:])),
            tools=offered.tools,
            hidden=offered.hidden,
            tool_choice=request.tool_choice,
            parameters=request.parameters,
            principal=turn.principal,
            approval=request.approval,
            response_format=request.response_format,
        )

    async def _with_hidden_work(self, messages: tuple[Message, ...], owner: str) -> tuple[Message, ...]:
        """Clients that bring tools send the whole chat each time, without what ours did between: we put that back."""
        handed_out = [{turn_of_call(call.id) for call in message.tool_calls} - {None} for message in messages]
        wanted = [turn_id for ids in handed_out for turn_id in ids if turn_id is not None]
        if not wanted:
            return messages
        added = await self._history.added(wanted, owner)
        whole: list[Message] = []
        for message, ids in zip(messages, handed_out, strict=True):
            known = added.get(next((turn_id for turn_id in ids if turn_id is not None), UUID(int=0)))
            whole += known or (message,)
        return tuple(whole)

    async def _run(self, turn: ActiveTurn, model: ModelInfo, offered: ToolSelection) -> None:
        turn.stage = "running"
        try:
            end = await self._reach_end(turn, model, offered)
            if end is not None:
                await self._finish(turn, end)
            elif turn.cancel_reason is None:
                await self._park(turn)
        finally:
            turn.ended()
            if self._turns.get(turn.id) is turn:  # else it waited, and goes on here already
                del self._turns[turn.id]

    async def _reach_end(self, turn: ActiveTurn, model: ModelInfo, offered: ToolSelection) -> TurnEnd | None:
        """Run the loop; whatever happens becomes one of the events that end a turn, or None: it goes on elsewhere."""
        turn.deadline = deadline = Deadline(self._deadline)
        if turn.cancel_reason is not None:
            return _cancelled(turn)
        if turn.lost:
            return self._failed(turn, TurnLost())
        try:
            async with deadline:
                conversation = await self._conversation(turn, model, offered)
                finish_reason = await self._from_cache(conversation, turn) or await self._loop.run(conversation, turn)
            if finish_reason is None:
                return None
            if turn.cached or not is_cacheable(finish_reason, turn.log.entries, offered.tools + offered.hidden):
                turn.cache_key = None
        except asyncio.CancelledError:
            if turn.cancel_reason is None:
                raise
            return _cancelled(turn)
        except GatewayError as error:
            return self._failed(turn, error)
        except Exception:  # a turn must end, whatever breaks in it; the log has the rest
            if deadline.expired:
                return self._failed(turn, TurnTimeout(f"The turn took longer than its {self._deadline:g} seconds."))
            log.exception("turn_broke", turn_id=str(turn.id))
            return self._failed(turn, GatewayError())
        return TurnCompleted(
            finish_reason=finish_reason,
            usage=turn.transcript.usage,
            steps=turn.transcript.steps,
            duration_ms=turn.elapsed_ms(),
            first_token_ms=turn.first_token_ms,
            cost_usd=turn.transcript.cost_usd,
            tokens_per_second=turn.transcript.usage.tokens_per_second,
            cached=turn.cached,
        )

    async def _from_cache(self, conversation: ModelContext, turn: ActiveTurn) -> str | None:
        """The finish reason of a known answer, which it has told; None: it must be found."""
        ttl = turn.record.request.cache_ttl
        if ttl is None:
            return None
        turn.cache_key = cache_key(conversation)
        if turn.transcript.steps:
            return None  # another worker has begun to find it
        try:
            known = await self._responses.find(turn.record.owner, turn.cache_key, ttl)
        except StorageUnavailable:
            log.warning("response_cache_away", turn_id=str(turn.id))
            return None
        if known is None:
            return None
        turn.cached = True
        turn.opened()
        return replay(known, turn)

    async def _keep_response(self, turn: ActiveTurn, key: bytes, ttl: int) -> None:
        try:
            async with asyncio.timeout(_CACHE_PATIENCE):
                await self._responses.keep(turn.record.owner, key, turn.id, ttl)
        except (StorageUnavailable, TimeoutError):
            log.warning("response_not_cached", turn_id=str(turn.id))

    async def _park(self, turn: ActiveTurn) -> None:
        """Let the turn wait for a person: from now on it is rows."""
        turn.stage = "finishing"
        await turn.journal.suspend(turn.log)
        turn.log.close("input_required")
        log.info("turn_waits", turn_id=str(turn.id))
        try:
            if await self._inputs.wake(turn.id):
                self._bus.publish(BusMessage("orphan", turn.id))
        except StorageUnavailable:
            log.warning("turn_may_sleep_on", turn_id=str(turn.id))

    def _failed(self, turn: ActiveTurn, error: GatewayError) -> TurnFailed:
        turn.failure = error
        return TurnFailed(error=error.info(), saved=_saved(turn))

    async def _finish(self, turn: ActiveTurn, end: TurnEnd) -> None:
        """Keep the turn's end, then show it. A database that stays away too long sends the readers away instead."""
        turn.stage = "finishing"
        if isinstance(end, TurnCompleted) and turn.cache_key is not None and turn.record.request.cache_ttl is not None:
            await self._keep_response(turn, turn.cache_key, turn.record.request.cache_ttl)
        turn.log.append(end)
        outcome = _outcome(turn, end)
        kept = turn.journal.finish(turn.log, outcome)
        try:
            await asyncio.wait_for(asyncio.shield(kept), self._storage_patience)
        except TimeoutError:
            log.error("turn_end_not_kept_in_time", turn_id=str(turn.id))
            turn.log.close(StorageUnavailable.code)
        log.info(
            f"turn_{outcome.status}",
            turn_id=str(turn.id),
            model=turn.record.model,
            steps=outcome.steps,
            tokens=outcome.usage.total_tokens,
            first_token_ms=outcome.first_token_ms,
            duration_ms=outcome.duration_ms,
            code=outcome.error.code if outcome.error else None,
        )


def _cancelled(turn: ActiveTurn) -> TurnCancelled | None:
    assert turn.cancel_reason is not None
    if turn.cancel_reason == "handed_over":
        return None
    error = ErrorInfo(code=turn.cancel_reason, message=_CANCEL_MESSAGES[turn.cancel_reason])
    return TurnCancelled(error=error, saved=_saved(turn))


def _saved(turn: ActiveTurn) -> Literal["text", "prompt", "nothing"]:
    if not turn.kept:
        return "nothing"
    return "text" if turn.transcript.response else "prompt"


def _outcome(turn: ActiveTurn, end: TurnEnd) -> TurnOutcome:
    transcript = turn.transcript
    failed = end if isinstance(end, TurnFailed | TurnCancelled) else None
    return TurnOutcome(
        status="completed" if failed is None else "failed" if isinstance(failed, TurnFailed) else "cancelled",
        messages=turn.record.request.messages + transcript.messages,
        response=transcript.response,
        steps=transcript.steps,
        usage=transcript.usage,
        duration_ms=turn.elapsed_ms(),
        finish_reason=end.finish_reason if isinstance(end, TurnCompleted) else None,
        error=failed.error if failed else None,
        cost_usd=transcript.cost_usd,
        first_token_ms=turn.first_token_ms,
        cached=turn.cached,
    )
