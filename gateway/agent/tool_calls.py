"""The tool calls of one step: which may run when, and what becomes of each."""

import asyncio
import re
import time
from uuid import UUID

import msgspec

from gateway.agent.approval import build_approval_request, needs_approval
from gateway.agent.batch_tool import BATCH, run_batch
from gateway.agent.tool_search import FIND_TOOLS, search_tools
from gateway.common.logging import get_logger
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
from gateway.ports.tools import CallObserver, Toolbox
from gateway.ports.turns import EventEmitter

log = get_logger(__name__)


class ToolCallScheduler:
    """Runs a step's calls as they become known.

    A read-only call waits for the calls that change something before it, any other for all calls before it: so the
    model's order holds where it can matter. Only read-only calls may start before `run_deferred()`, which
    follows the end of the model's stream: a step that breaks off is repeated and must not have changed anything.
    """

    def __init__(
        self,
        step: int,
        *,
        offered: dict[str, ToolSpec],
        toolbox: Toolbox,
        principal: Principal,
        emitter: EventEmitter,
        limit: int,
        approval: Approval = "never",
        hidden: tuple[ToolSpec, ...] = (),
    ) -> None:
        self._step = step
        self._offered = offered
        self._toolbox = toolbox
        self._principal = principal
        self._out = emitter
        self._approval: Approval = approval
        self._hidden = hidden
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)
        self._released = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._changing: list[asyncio.Task[None]] = []
        self.client_calls = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def add_call(self, call: ToolCall) -> None:
        """Announce a call and let it run when its time has come. The client's own are left to the client."""
        spec = self._offered.get(call.name)
        arguments = _parse_arguments(call.arguments)
        if spec is not None and spec.client:
            self._emit_client_call(call, arguments)
            return
        self._out.emit(
            ToolCallStarted(
                step=self._step,
                call_id=call.id,
                server=spec.server if spec else None,
                tool=call.name,
                arguments=call.arguments if arguments is None else arguments,
                needs_approval=spec is not None and arguments is not None and needs_approval(spec, self._approval),
            )
        )
        read_only = spec is None or arguments is None or spec.read_only
        before = list(self._changing if read_only else self._tasks)
        task = asyncio.create_task(self._run_call(call, spec, arguments, before, wait_release=not read_only))
        self._tasks.append(task)
        if not read_only:
            self._changing.append(task)

    def _emit_client_call(self, call: ToolCall, arguments: JsonObject | None) -> None:
        """The id names the turn: who brings the result brings that back."""
        self.client_calls += 1
        self._out.emit(
            ToolCallStarted(
                step=self._step,
                call_id=format_client_call_id(self._out.id, self._step, self.client_calls),
                server=None,
                tool=call.name,
                arguments=call.arguments if arguments is None else arguments,
                client=True,
            )
        )

    def retry_interrupted(self, call: ToolCallStarted) -> None:
        """Settle a call that another worker had begun: made again only where that can do no harm."""
        spec = self._offered.get(call.tool)
        if spec is None or not (spec.read_only or spec.idempotent):
            note = text_block("The gateway was interrupted during this call. It may or may not have taken effect.")
            self._out.emit(ToolFinished(call_id=call.call_id, outcome="unknown", content=[note]))
            return
        arguments = call.arguments if isinstance(call.arguments, dict) else None
        again = ToolCall(call.call_id, call.tool, "")
        self._tasks.append(asyncio.create_task(self._run_call(again, spec, arguments, [], wait_release=False)))

    def resume_with_answers(self, call: ToolCallStarted, inputs: list[StoredQuestion]) -> None:
        """Go on with a call whose questions have their answers; one that was held open for them was cut with them."""
        if any(kept.question.held for kept in inputs):
            self.retry_interrupted(call)
            return
        spec = self._offered.get(call.tool) or self._toolbox.find_tool(call.tool)
        arguments = call.arguments if isinstance(call.arguments, dict) else {}
        approvals = [kept.answer for kept in inputs if kept.question.kind == "approval" and kept.answer]
        if any(answer.action != "accept" for answer in approvals):
            note = text_block("The user did not allow this call. Do not try it again unless they ask for it.")
            self._out.emit(ToolFinished(call_id=call.call_id, outcome="denied", content=[note]))
            return
        again = ToolCall(call.call_id, call.tool, "")
        self._tasks.append(
            asyncio.create_task(self._run_call(again, spec, arguments, [], wait_release=False, given=inputs))
        )

    def run_deferred(self) -> None:
        """The model's stream ended well: calls that change something may run."""
        self._released.set()

    async def wait_for_results(self) -> None:
        """Wait for every call's result."""
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def cancel_calls(self) -> None:
        """Stop what still runs; nothing of this step is left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_call(
        self,
        call: ToolCall,
        spec: ToolSpec | None,
        arguments: JsonObject | None,
        before: list[asyncio.Task[None]],
        *,
        wait_release: bool,
        given: list[StoredQuestion] | None = None,
    ) -> None:
        if before:
            await asyncio.wait(before)
        if wait_release:
            await self._released.wait()
        async with self._slots:
            await self._out.wait_until_durable()
            started = time.perf_counter()
            result = await self._execute(call, spec, arguments, given)
            duration_ms = round((time.perf_counter() - started) * 1000, 2)
        if isinstance(result, PendingInput):
            await self._out.ask_questions(call.id, result)
            return
        log.info("tool_call", tool=call.name, outcome=result.outcome, duration_ms=duration_ms)
        self._out.emit(
            ToolFinished(
                call_id=call.id,
                outcome=result.outcome,
                content=result.content,
                structured=result.structured,
                duration_ms=duration_ms,
            )
        )

    async def _execute(
        self, call: ToolCall, spec: ToolSpec | None, arguments: JsonObject | None, given: list[StoredQuestion] | None
    ) -> ToolResult | PendingInput:
        if call.problem:
            return _error_result(call.problem)
        if spec is None:
            names = ", ".join(sorted(self._offered)) or "none"
            return _error_result(f"There is no tool named {call.name!r}. The tools on offer: {names}.")
        if arguments is None:
            return _error_result(f"The arguments of {call.name} must be one JSON object that fits its schema.")
        if spec.name == FIND_TOOLS and spec.helper:
            return search_tools(str(arguments.get("query", "")), self._hidden)
        if spec.name == BATCH and spec.helper:
            return await self._run_batch(call, arguments)
        if given is None and needs_approval(spec, self._approval):
            return build_approval_request(spec, arguments)
        observer = _EventObserver(call.id, self._out)
        answers = [kept for kept in given or () if kept.question.kind != "approval"]
        return await self._toolbox.call_tool(
            spec, arguments, principal=self._principal, observer=observer, answers=answers
        )

    async def _run_batch(self, call: ToolCall, arguments: JsonObject) -> ToolResult:
        observer = _EventObserver(call.id, self._out)

        async def make(spec: ToolSpec, given: JsonObject) -> ToolResult | PendingInput:
            if needs_approval(spec, self._approval):
                return build_approval_request(spec, given)
            return await self._toolbox.call_tool(spec, given, principal=self._principal, observer=observer)

        return await run_batch(arguments, self._offered, make, self._limit)


class _EventObserver(CallObserver):
    """Turns what a server says during a call into events, as many and as long as a turn can bear."""

    _MAX_EVENTS = 500
    _MAX_MESSAGE_LENGTH = 2_000

    def __init__(self, call_id: str, out: EventEmitter) -> None:
        self._call_id = call_id
        self._out = out
        self._remaining = self._MAX_EVENTS

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        message = message and message[: self._MAX_MESSAGE_LENGTH]
        self._emit_bounded(ToolProgress(call_id=self._call_id, progress=progress, total=total, message=message))

    def on_log(self, level: str, message: str) -> None:
        self._emit_bounded(ToolLog(call_id=self._call_id, level=level, message=message[: self._MAX_MESSAGE_LENGTH]))

    async def ask_user(self, question: Question) -> Answer:
        return await self._out.ask_inline(self._call_id, question)

    def _emit_bounded(self, event: Event) -> None:
        if self._remaining > 0:
            self._remaining -= 1
            self._out.emit(event)


_CLIENT_CALL = re.compile(r"call_([0-9a-f]{32})_\d+_\d+")


def format_client_call_id(turn_id: UUID, step: int, number: int) -> str:
    return f"call_{turn_id.hex}_{step}_{number}"


def parse_client_call_id(call_id: str) -> UUID | None:
    """The turn that has handed out a call."""
    match = _CLIENT_CALL.fullmatch(call_id)
    return UUID(hex=match[1]) if match else None


def build_input_resolved(asked: StoredQuestion, answer: Answer) -> InputResolved:
    """The event that shows the answer to a question."""
    return InputResolved(
        input_id=str(asked.id), call_id=asked.call_id, action=answer.action, content=answer.content, by=answer.by
    )


def _parse_arguments(arguments: str) -> JsonObject | None:
    """The arguments as an object; models write nothing at all where a tool takes none. None: it is no object."""
    try:
        return msgspec.json.decode(arguments.strip() or "{}", type=JsonObject)
    except JSON_DECODE_ERRORS:
        return None


def _error_result(message: str) -> ToolResult:
    return ToolResult(outcome="error", content=[text_block(message)])
