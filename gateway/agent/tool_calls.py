"""Schedules and runs the tool calls of one step."""

import asyncio
import re
import time
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

import msgspec

from gateway.agent.approval import build_approval_request, needs_approval
from gateway.agent.batch_tool import BATCH, run_batch
from gateway.agent.branches.recorded_calls import RecordedCalls
from gateway.agent.code.call_order import CallOrder
from gateway.agent.code.programs import TurnPrograms
from gateway.agent.direct.calls import build_result_event, choose_idempotency_key
from gateway.agent.model_context import TurnContext
from gateway.agent.sampling.calls import call_with_sampling, sample_inline
from gateway.agent.sampling.sampler import TurnSampler
from gateway.agent.tasks.waits import make_wait_event
from gateway.agent.tool_search import FIND_TOOLS, RUN_PYTHON, search_tools
from gateway.common.concurrency import LightEvent, TaskSet
from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.domain.events import Event, InputResolved, ToolCallStarted, ToolFinished, ToolLog, ToolProgress
from gateway.domain.messages import (
    JSON_DECODE_ERRORS,
    Answer,
    Approval,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolCall,
    ToolResult,
    ToolSpec,
    text_block,
)
from gateway.domain.toolsets import was_called
from gateway.ports.code import ProgramInterface
from gateway.ports.tools import (
    MAX_OBSERVED_MESSAGE_LENGTH,
    MAX_OBSERVED_MESSAGES,
    CallObserver,
    Toolbox,
    ToolCallRequest,
    make_idempotency_key,
)
from gateway.ports.turns import EventEmitter, NestedCalls

log = get_logger(__name__)

_MAX_CLIENT_CALL_ID_LENGTH, _MAX_LOGGED_NAME_LENGTH = 128, 100


class ToolCallScheduler(NestedCalls):
    """Runs the calls of a step while the model still streams.

    A read-only call waits for earlier changing calls, and a changing call for all earlier calls, so the model's order
    holds where it matters. Changing calls start only after `run_deferred()`, when the model's stream has ended: an
    interrupted stream is retried, and must not have had effects. The calls of a program have a scheduler of their own,
    which knows the call of the program as their `parent`.
    """

    def __init__(
        self,
        step: int,
        *,
        offered: dict[str, ToolSpec],
        toolbox: Toolbox,
        principal: Principal,
        emitter: TurnContext,
        sampler: TurnSampler,
        limit: int,
        approval: Approval = "never",
        hidden: tuple[ToolSpec, ...] = (),
        recorded_calls: RecordedCalls | None = None,
        programs: TurnPrograms | None = None,
        functions: dict[str, ToolSpec] | None = None,
        interface: ProgramInterface | None = None,
        parent: str | None = None,
    ) -> None:
        self._step = step
        self._offered = offered
        self._toolbox = toolbox
        self._principal = principal
        self._emitter = emitter
        self._sampler = sampler
        self._approval: Approval = approval
        self._hidden = hidden
        self._recorded_calls = recorded_calls
        self._programs = programs
        self._functions = functions or {}
        self._interface = interface
        self._parent = parent
        self._nested: list[ToolCallScheduler] = []
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)
        self._deferred_may_run = LightEvent()
        self._tasks: TaskSet | None = None
        self._calls: list[asyncio.Task[None]] = []
        self._order = CallOrder()
        self.client_calls = 0
        self.answered_calls = 0

    def __len__(self) -> int:
        return len(self._calls) + self.answered_calls

    def add_call(self, call: ToolCall) -> None:
        """Emit a call and start it when it may run.

        The gateway does not run client-side calls. Their clients do not see those that have a problem.
        """
        spec = self._offered.get(call.name)
        arguments = _parse_arguments(call.arguments)
        is_runnable = arguments is not None and not call.problem
        if spec is not None and spec.client and not call.problem:
            self._emit_client_call(call, arguments)
            return
        started = ToolCallStarted(
            step=self._step,
            call_id=call.id,
            server=(spec.server or None) if spec else None,
            tool=call.name,
            arguments=call.arguments if arguments is None else arguments,
            extra_content=msgspec.UNSET if call.extra_content is None else call.extra_content,
            model_id=call.model_id or msgspec.UNSET,
            parent_call_id=self._parent or msgspec.UNSET,
            original_name=(spec is not None and spec.original_name) or msgspec.UNSET,
        )
        if (answer := self._find_answer(started, spec)) is not None:
            self._emitter.emit(started)
            self._add_answer(answer)
            return
        asks = spec is not None and is_runnable and not _is_own(spec) and needs_approval(spec, self._approval)
        self._emitter.emit(msgspec.structs.replace(started, needs_approval=True) if asks else started)
        read_only = spec is None or not is_runnable or spec.read_only
        earlier = self._order.list_earlier(read_only=read_only)
        self._spawn(self._run_call(call, spec, arguments, earlier, deferred=not read_only), read_only=read_only)

    def _find_answer(self, call: ToolCallStarted, spec: ToolSpec | None) -> ToolFinished | None:
        """Return the recorded result of a replay's call."""
        return None if self._recorded_calls is None else self._recorded_calls.find_answer(call, spec)

    def _add_answer(self, answer: ToolFinished) -> None:
        self.answered_calls += 1
        self._emitter.emit(answer)

    def _emit_client_call(self, call: ToolCall, arguments: JsonObject | None) -> None:
        """Emit a client-side call.

        Its id contains the turn's id, which the client returns with the result. Of a turn that is not stored, nothing
        could be restored by it, so the client gets the model's own id.
        """
        self.client_calls += 1
        call_id = format_client_call_id(self._emitter.id, self._step, self.client_calls)
        if not self._emitter.is_stored and len(call.id) <= _MAX_CLIENT_CALL_ID_LENGTH:
            call_id = call.id
        own_id = call.model_id or call.id
        self._emitter.emit(
            ToolCallStarted(
                step=self._step,
                call_id=call_id,
                server=None,
                tool=call.name,
                arguments=call.arguments if arguments is None else arguments,
                client=True,
                extra_content=msgspec.UNSET if call.extra_content is None else call.extra_content,
                model_id=own_id if own_id != call_id else msgspec.UNSET,
            )
        )

    def settle_open_call(self, call: ToolCallStarted) -> None:
        turn = self._emitter
        open_inputs = turn.transcript.open_inputs(call.call_id)
        questions = [question for question in turn.inputs if str(question.id) in open_inputs]
        if (wait := turn.tasks.find_wait(call.call_id)) is not None and not wait.is_settled:
            if str(wait.id) not in open_inputs:
                turn.emit(make_wait_event(wait))
        elif not questions:
            self.retry_interrupted(call)
        elif all(question.answer is not None for question in questions):
            for question in questions:
                assert question.answer is not None
                turn.emit(build_input_resolved(question, question.answer))
            self.resume_with_answers(turn.transcript.get_call(call.call_id), questions)

    def retry_interrupted(self, call: ToolCallStarted) -> None:
        """Repeat an interrupted call if that is safe.

        Its task goes on, and a direct call begins here. Else, if not repeatable, its outcome is unknown. Programs keep
        their order for variables.
        """
        spec = self._find_spec(call)
        if (answer := self._find_answer(call, spec)) is not None:
            self._add_answer(answer)
            return
        goes_on = self._emitter.begins_call or self._emitter.tasks.find_wait(call.call_id) is not None
        answers = list[StoredQuestion]() if goes_on or self._emitter.direct_call is not None else None
        if spec is None or not (spec.is_repeatable or goes_on):
            note = text_block("The gateway was interrupted during this call. It may or may not have taken effect.")
            self._emitter.emit(ToolFinished(call_id=call.call_id, outcome="unknown", content=[note]))
            return
        arguments = call.arguments if isinstance(call.arguments, dict) else None
        is_program = spec.helper and spec.name == RUN_PYTHON
        earlier = self._order.list_earlier(read_only=False) if is_program else []
        again = ToolCall(call.call_id, call.tool, "")
        run = self._run_call(again, spec, arguments, earlier, deferred=False, answers=answers)
        self._spawn(run, read_only=not is_program)

    def resume_with_answers(self, call: ToolCallStarted, inputs: list[StoredQuestion]) -> None:
        """Continue a call whose questions were answered.

        A takeover interrupts a call with an inline question.
        """
        if any(stored.question.held for stored in inputs):
            self.retry_interrupted(call)
            return
        spec = self._find_spec(call)
        arguments = call.arguments if isinstance(call.arguments, dict) else {}
        approvals = [stored.answer for stored in inputs if stored.question.kind == "approval" and stored.answer]
        if any(answer.action != "accept" for answer in approvals):
            note = text_block("The user did not allow this call. Do not retry it unless they ask for it.")
            self._emitter.emit(ToolFinished(call_id=call.call_id, outcome="denied", content=[note]))
            return
        if spec is None and (absence := self._toolbox.explain_absence(call.server or "", self._principal)):
            self._emitter.emit(ToolFinished(call_id=call.call_id, outcome="error", content=[text_block(absence)]))
            return
        again = ToolCall(call.call_id, call.tool, "")
        self._spawn(self._run_call(again, spec, arguments, [], deferred=False, answers=inputs))

    def _find_spec(self, call: ToolCallStarted) -> ToolSpec | None:
        """Return the tool of an earlier call.

        Its name may be that of another tool since servers or the toolset changed.
        """
        spec = self._offered.get(call.tool) or self._toolbox.find_tool(call.tool, self._principal)
        identity = call.original_name or call.tool
        if spec is None or (call.server in (None, spec.server) and was_called(spec, identity)):
            return spec
        specs = [spec for spec in self._toolbox.list_specs(self._principal) if spec.server == call.server]
        return next((spec for spec in specs if was_called(spec, identity)), None)

    def run_deferred(self) -> None:
        """Start the changing calls, as the model's stream has ended."""
        self._deferred_may_run.set()

    async def wait_for_results(self) -> None:
        """Wait until every call has a result.

        Raises the first error of a call.
        """
        if self._calls:
            await asyncio.gather(*self._calls)

    async def cancel_calls(self) -> None:
        """Cancel the calls that still run."""
        if self._tasks:
            await self._tasks.stop()
        for nested in self._nested:
            await nested.cancel_calls()

    def _spawn(self, call: Coroutine[object, object, None], *, read_only: bool = True) -> None:
        if self._tasks is None:  # most steps have no calls
            self._tasks = TaskSet("tool call", log_errors=False)
        task = self._tasks.spawn(call)
        self._calls.append(task)
        self._order.add(task, read_only=read_only)

    async def _run_call(
        self,
        call: ToolCall,
        spec: ToolSpec | None,
        arguments: JsonObject | None,
        earlier: list[asyncio.Task[None]],
        *,
        deferred: bool,
        answers: list[StoredQuestion] | None = None,
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        if deferred:
            await self._deferred_may_run.wait()
        async with self._slots:
            await self._emitter.wait_until_durable()
            started_at = time.perf_counter()
            result = await self._execute(call, spec, arguments, answers)
            duration_ms = round((time.perf_counter() - started_at) * 1000, 2)
        await self._emitter.withdraw_questions(call.id)
        if result is None:
            return
        if isinstance(result, PendingInput):
            await self._emitter.ask_questions(call.id, result)
            return
        name = spec.name if spec is not None else clean_text(call.name, _MAX_LOGGED_NAME_LENGTH)
        log.info("tool_called", tool=name, outcome=result.outcome, duration_ms=duration_ms)
        self._emitter.emit(build_result_event(self._emitter, call.id, result, duration_ms))

    async def _execute(
        self, call: ToolCall, spec: ToolSpec | None, arguments: JsonObject | None, answers: list[StoredQuestion] | None
    ) -> ToolResult | PendingInput | None:
        """Run a call.

        None: it is a program that waits for a person.
        """
        if call.problem:
            return _error_result(call.problem)
        if spec is None:
            names = ", ".join(sorted(self._offered)) or "none"
            return _error_result(f"There is no tool named {call.name!r}. Available tools: {names}.")
        if arguments is None:
            return _error_result(f"The arguments of {call.name} must be one JSON object that matches its schema.")
        if spec.name == FIND_TOOLS and spec.helper:
            return search_tools(str(arguments.get("query", "")), self._hidden, self._interface)
        if spec.name == RUN_PYTHON and spec.helper and self._programs is not None:
            return await self._programs.run(call, arguments, self._start_program_calls)
        if spec.name == BATCH and spec.helper:
            return await self._run_batch(call, arguments)
        if answers is None and needs_approval(spec, self._approval):
            return build_approval_request(spec, arguments)
        return await self._call_server(
            call.id,
            ToolCallRequest(
                spec,
                arguments,
                self._principal,
                answers=answers or (),
                idempotency_key=choose_idempotency_key(self._emitter, call.id),
                is_whole=self._emitter.direct_call is not None,
            ),
        )

    async def _call_server(self, call_id: str, request: ToolCallRequest) -> ToolResult | PendingInput:
        request = msgspec.structs.replace(
            request,
            observer=_EventObserver(call_id, request.spec.server, self._emitter, self._sampler),
            require_lease=self._emitter.require_lease,
            is_in_turn=True,
            can_wait=self._emitter.is_stored,
            task=self._emitter.tasks.find_task(call_id),
        )
        return await call_with_sampling(self._toolbox, self._sampler, call_id, request)

    def _start_program_calls(self, parent: str) -> "ToolCallScheduler":
        nested = ToolCallScheduler(
            self._step,
            offered=self._functions,
            toolbox=self._toolbox,
            principal=self._principal,
            emitter=self._emitter,
            sampler=self._sampler,
            limit=self._limit,
            approval=self._approval,
            recorded_calls=self._recorded_calls,
            parent=parent,
        )
        nested.run_deferred()  # the model's stream has ended
        self._nested.append(nested)
        return nested

    async def _run_batch(self, call: ToolCall, arguments: JsonObject) -> ToolResult:
        async def call_tool(spec: ToolSpec, batch_arguments: JsonObject, number: int) -> ToolResult | PendingInput:
            if needs_approval(spec, self._approval):
                return build_approval_request(spec, batch_arguments)
            key = make_idempotency_key(self._emitter.id, call.id, number)
            request = ToolCallRequest(spec, batch_arguments, self._principal, idempotency_key=key)
            return await self._call_server(call.id, request)

        return await run_batch(arguments, self._offered, call_tool, self._limit)


class _EventObserver(CallObserver):
    """Turns progress and log messages of a server into events.

    The events are limited in number and length.
    """

    def __init__(self, call_id: str, server: str, emitter: EventEmitter, sampler: TurnSampler) -> None:
        self._call_id = call_id
        self._server = server
        self._sampler = sampler
        self._emitter = emitter
        self._remaining = MAX_OBSERVED_MESSAGES

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        message = message and message[:MAX_OBSERVED_MESSAGE_LENGTH]
        self._emit_bounded(ToolProgress(call_id=self._call_id, progress=progress, total=total, message=message))

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        message = data if isinstance(data, str) else msgspec.json.encode(data).decode()
        self._emit_bounded(ToolLog(call_id=self._call_id, level=level, message=message[:MAX_OBSERVED_MESSAGE_LENGTH]))

    async def ask_user(self, question: Question) -> Answer:
        if question.kind != "host":
            answer = await self._emitter.ask_inline(self._call_id, question)
            if question.request is None or answer.action != "accept":
                return answer
        return await sample_inline(self._sampler, self._call_id, self._server, question)

    def _emit_bounded(self, event: Event) -> None:
        if self._remaining > 0:
            self._remaining -= 1
            self._emitter.emit(event)


_CLIENT_CALL = re.compile(r"call_([0-9a-f]{32})_\d+_\d+")


def format_client_call_id(turn_id: UUID, step: int, number: int) -> str:
    return f"call_{turn_id.hex}_{step}_{number}"


def parse_client_call_id(call_id: str) -> UUID | None:
    """Return the turn of a client-side call; None for other ids."""
    match = _CLIENT_CALL.fullmatch(call_id)
    return UUID(hex=match[1]) if match else None


def build_input_resolved(question: StoredQuestion, answer: Answer) -> InputResolved:
    """Build the event for the answer to a question."""
    return InputResolved(
        input_id=str(question.id),
        call_id=question.call_id,
        action=answer.action,
        content=answer.content,
        by=answer.by,
        kind=question.question.kind,
    )


def _parse_arguments(arguments: str) -> JsonObject | None:
    """Parse the arguments.

    None if they are not a JSON object. Models write "" for a tool without parameters.
    """
    try:
        return msgspec.json.decode(arguments.strip() or "{}", type=JsonObject)
    except JSON_DECODE_ERRORS:
        return None


def _is_own(spec: ToolSpec) -> bool:
    """Return whether the gateway runs the tool without any server."""
    return spec.helper and spec.name in (FIND_TOOLS, BATCH, RUN_PYTHON)


def _error_result(message: str) -> ToolResult:
    return ToolResult(outcome="error", content=[text_block(message)])
