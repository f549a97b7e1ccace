"""The agent loop: model calls and tool calls in turn.

It ends when the model gives a final answer.
"""

from collections.abc import Callable
from functools import lru_cache
from uuid import uuid4

import msgspec

from gateway.agent.code.programs import TurnPrograms
from gateway.agent.direct.calls import choose_finish_reason
from gateway.agent.history.summarizer import HistorySummarizer
from gateway.agent.model_context import ModelContext, TurnContext
from gateway.agent.sampling.limits import SamplingLimits
from gateway.agent.sampling.sampler import TurnSampler
from gateway.agent.structured_output import OutputSchema
from gateway.agent.tool_calls import ToolCallScheduler
from gateway.common.logging import get_logger
from gateway.domain.branches import NEW_CALL
from gateway.domain.errors import OutputInvalid
from gateway.domain.events import (
    ModelRetry,
    ReasoningDelta,
    StepCompleted,
    TextDelta,
    ToolCallStarted,
    ToolFinished,
    TurnResumed,
)
from gateway.domain.messages import (
    Message,
    ToolCall,
    ToolChoice,
    ToolSpec,
    Usage,
    text_block,
)
from gateway.ports.code import Sandbox
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink
from gateway.ports.tools import Toolbox

log = get_logger(__name__)

_MAX_STRUCTURED_ATTEMPTS = 2
_BREAK = "\n\n"
_MAX_SHARED_CHARS, _MAX_SHARED_TEXTS = 16, 2_048


class LoopLimits(msgspec.Struct, frozen=True):
    """Limits of a turn.

    They are its steps, total tokens, concurrent tool calls, the characters of a program's result, and the model calls
    that servers ask for.
    """

    steps: int = 10
    tokens: int = 200_000
    parallel_calls: int = 8
    result_chars: int = 32_000
    sampling: SamplingLimits = SamplingLimits()


class AgentLoop:
    """Runs turns.

    It is stateless: the state of a turn is in its `TurnContext`.
    """

    def __init__(self, model: Model, toolbox: Toolbox, limits: LoopLimits, sandbox: Sandbox | None = None) -> None:
        self._model = model
        self._sandbox = sandbox
        self._toolbox = toolbox
        self._limits = limits
        self._summarizer = HistorySummarizer(model)

    async def run_turn(self, context: ModelContext, turn: TurnContext) -> str | None:
        """Run steps until the final answer; return the finish reason.

        The answer is final when the model calls no more tools. None: the turn must wait for a person. A resumed turn
        continues after its last completed step.

        Raises:
            ModelError: the model's server failed, and retries are not allowed or failed, too.
        """
        if context.overflow is not None:
            context = await self._summarizer.summarize(context.overflow, context, turn)
        programs = self._create_programs(context, turn)
        sampler = TurnSampler(self._model, context, turn, self._limits.sampling)
        finish_reason = await self._resume(context, turn, programs, sampler)
        if finish_reason is not None or turn.transcript.waits_for_input:
            return finish_reason
        output_schema = await OutputSchema.prepare(context.response_format) if context.response_format else None
        step, limit_reached = turn.transcript.steps + 1, "step_limit"
        last = turn.taken_steps + self._limits.steps
        while step <= last and (context.tools or output_schema is None):
            calls = self._create_scheduler(step, context, turn, programs, sampler)
            sampler.begin_step()
            try:
                model_call = self._create_model_call(context, turn, step)
                answer, draft = await self._ask_model(
                    model_call, step, turn, calls.add_call, quiet=output_schema is not None
                )
                if output_schema is not None:
                    draft, problem = await output_schema.read_answer(draft)
                    if problem is None:
                        turn.emit(TextDelta(step=step, text=draft))
                turn.emit(_step_completed(step, answer))
                calls.run_deferred()
                await turn.settle_budget()
                sampler.end_step()
                await calls.wait_for_results()
            finally:
                await calls.cancel_calls()
            if turn.transcript.waits_for_input:
                return None
            if turn.transcript.has_refused_calls(step):
                return NEW_CALL
            if calls.client_calls:
                return "tool_calls"
            if not len(calls) and (output_schema is None or turn.transcript.step_text(step)):
                return answer.finish_reason
            step += 1
            if not len(calls):
                break
            if turn.transcript.usage.total_tokens >= self._limits.tokens:
                limit_reached = "token_limit"
                break
        return (
            limit_reached if output_schema is None else await self._ask_structured(output_schema, step, context, turn)
        )

    def estimate_interrupted_usage(self, context: ModelContext, turn: TurnContext) -> Usage | None:
        """Estimate the usage of the model call that a takeover interrupted.

        Return None if the journal has nothing of it.
        """
        step = turn.interrupted_step
        written = turn.transcript.count_written_chars(step) if step is not None else 0
        return self._create_model_call(context, turn, step).estimate_usage(written) if step and written else None

    async def _resume(
        self, context: ModelContext, turn: TurnContext, programs: TurnPrograms | None, sampler: TurnSampler
    ) -> str | None:
        """Complete the last step of a resumed turn.

        Return the finish reason if no step has to follow.
        """
        transcript = turn.transcript
        if transcript.waits_for_input and any(
            question.answer and transcript.is_open_input(str(question.id)) for question in turn.inputs
        ):
            turn.emit(TurnResumed())
        if (last_step := transcript.last_step()) is None:
            return None
        calls = self._create_scheduler(last_step.step, context, turn, programs, sampler)
        try:
            for call in transcript.open_calls():
                calls.settle_open_call(call)
            calls.run_deferred()
            await calls.wait_for_results()
        finally:
            await calls.cancel_calls()
        if transcript.has_refused_calls(last_step.step):
            return NEW_CALL
        if transcript.has_client_calls(last_step.step):
            return "tool_calls"
        if turn.direct_call is not None:
            return choose_finish_reason(transcript)
        lacks_output = context.response_format is not None and not transcript.step_text(last_step.step)
        return None if transcript.is_followed(last_step.step) or lacks_output else last_step.finish_reason

    def _create_programs(self, context: ModelContext, turn: TurnContext) -> TurnPrograms | None:
        if context.interface is None or self._sandbox is None:
            return None
        return TurnPrograms(self._sandbox, context.interface, turn, max_result_chars=self._limits.result_chars)

    def _create_scheduler(
        self,
        step: int,
        context: ModelContext,
        turn: TurnContext,
        programs: TurnPrograms | None,
        sampler: TurnSampler,
    ) -> ToolCallScheduler:
        return ToolCallScheduler(
            step,
            offered={spec.name: spec for spec in _list_tools(context, turn)},
            hidden=context.hidden,
            toolbox=self._toolbox,
            principal=context.principal,
            emitter=turn,
            sampler=sampler,
            limit=self._limits.parallel_calls,
            approval=context.approval,
            recorded_calls=turn.recorded_calls,
            programs=programs,
            functions={spec.name: spec for spec in context.functions},
            interface=context.interface,
        )

    async def _ask_structured(
        self, output_schema: OutputSchema, step: int, context: ModelContext, turn: TurnContext
    ) -> str:
        """Ask for an answer that matches the schema, without tools.

        Retry once if it does not match. Model servers accept `response_format` only without tools.

        Raises:
            OutputInvalid: the second answer does not match either.
        """
        call = msgspec.structs.replace(
            self._create_model_call(context, turn, step),
            tools=(),
            tool_choice=None,
            response_format=output_schema.response_format,
        )
        problem = ""
        for attempt in range(1, _MAX_STRUCTURED_ATTEMPTS + 1):
            answer, text = await self._ask_model(call, step, turn, _ignore_call, quiet=True)
            is_refused = answer.finish_reason == "refusal"
            if not is_refused:
                text, problem = await output_schema.read_answer(text)
                if problem is None:
                    turn.emit(TextDelta(step=step, text=text))
            if is_refused or problem is None:
                turn.emit(_step_completed(step, answer))
                await turn.settle_budget()
                return answer.finish_reason
            if answer.finish_reason == "length":
                turn.record_failed_usage(answer.usage, answer.cost_usd)
                raise OutputInvalid("The answer reached its token limit before it was complete JSON.")
            turn.emit(
                ModelRetry(
                    step=step, reason=OutputInvalid.code, attempt=attempt, usage=answer.usage, cost_usd=answer.cost_usd
                )
            )
            retry_message = Message(
                role="user", content=f"This answer is not valid: {problem}. Answer again with only the JSON."
            )
            call = msgspec.structs.replace(
                call, messages=(*call.messages, Message(role="assistant", content=text or "{}"), retry_message)
            )
        raise OutputInvalid(f"The model's answer does not match response_format: {problem}.")

    def _create_model_call(self, context: ModelContext, turn: TurnContext, step: int) -> ModelCall:
        return ModelCall(
            model=context.model,
            messages=context.messages + turn.transcript.build_messages(with_images=context.sees_images),
            tools=_list_tools(context, turn),
            tool_choice=_choice_for_step(context, step),
            parameters=context.parameters,
            user=context.principal.user,
            allowed_models=context.principal.models,
            reads_text_calls=context.response_format is None,
            require_lease=turn.require_lease,
            client_indexes=context.client_indexes,
            message_paths=context.message_paths,
        )

    async def _ask_model(
        self, call: ModelCall, step: int, turn: TurnContext, add_call: Callable[[ToolCall], None], *, quiet: bool
    ) -> tuple[ModelAnswer, str]:
        """Return the model's answer, and its text if `quiet`.

        `quiet` withholds the text from the events.
        """
        await turn.wait_for_capacity()
        await turn.reserve_budget(call)
        sink = _StepEventSink(step, turn, add_call, quiet=quiet)
        answer = await self._model.complete(call, sink)
        if sink.is_refused:
            answer = msgspec.structs.replace(answer, finish_reason="refusal")
        return answer, "".join(sink.draft)


class _StepEventSink(ModelSink):
    """Turns the model's output into events."""

    def __init__(self, step: int, turn: TurnContext, add_call: Callable[[ToolCall], None], *, quiet: bool) -> None:
        self.draft: list[str] = []
        self.is_refused = False
        self._quiet = quiet
        self._step = step
        self._turn = turn
        self._add_call = add_call
        self.capacity = turn

    def on_accepted(self) -> None:
        self._turn.on_accepted()

    def on_text(self, text: str) -> None:
        if self._quiet:
            self.draft.append(text)
            return
        self._turn.emit(TextDelta(step=self._step, text=text if len(text) > _MAX_SHARED_CHARS else _share_text(text)))

    def on_refusal(self, text: str) -> None:
        self.is_refused = True
        self._turn.emit(TextDelta(step=self._step, text=text, refusal=True))

    def on_reasoning(self, text: str) -> None:
        self._turn.emit(ReasoningDelta(step=self._step, text=text))

    def on_tool_call(self, call: ToolCall) -> None:
        if not call.id or self._turn.transcript.knows_call(call.id):
            call = msgspec.structs.replace(call, id=f"call_{uuid4().hex}", model_id=call.id)
        self._add_call(call)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        call_id = f"call_{uuid4().hex}"
        self._turn.emit(
            ToolCallStarted(
                step=self._step, call_id=call_id, server=None, tool=call.name, arguments=call.arguments, hosted=True
            )
        )
        self._turn.emit(ToolFinished(call_id=call_id, outcome="ok", content=[text_block(output)]))

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self.draft.clear()
        self._turn.emit(ModelRetry(step=self._step, reason=reason, attempt=attempt, discard=discard, model=model))
        # Output that stands gets a break before that of the next attempt.
        if self._turn.transcript.has_text(self._step):
            self.on_text = self._begin_text
        if self._turn.transcript.reasoning_chars:
            self.on_reasoning = self._begin_reasoning

    def _begin_text(self, text: str) -> None:
        del self.on_text
        self.on_text(_BREAK + text)

    def _begin_reasoning(self, text: str) -> None:
        del self.on_reasoning
        self.on_reasoning(_BREAK + text)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self._turn.record_failed_usage(usage, cost_usd)


@lru_cache(_MAX_SHARED_TEXTS)
def _share_text(text: str) -> str:
    """Return one object for equal texts.

    Live turns hold all their tokens, which recur. A token takes a third less memory so.
    """
    return text


def _step_completed(step: int, answer: ModelAnswer) -> StepCompleted:
    return StepCompleted(
        step=step,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        tokens_per_second=answer.usage.tokens_per_second,
        warning=answer.warning or msgspec.UNSET,
    )


def _list_tools(context: ModelContext, turn: TurnContext) -> tuple[ToolSpec, ...]:
    """List the offered tools, then those loaded by `find_tools`.

    Loaded tools come last, because the prompt cache needs a stable prefix.
    """
    if not turn.transcript.loaded_tools:
        return context.tools
    hidden_by_name = {spec.name: spec for spec in context.hidden}
    return context.tools + tuple(
        hidden_by_name[name] for name in turn.transcript.loaded_tools if name in hidden_by_name
    )


def _ignore_call(_call: ToolCall) -> None:
    """Ignore a call, because no tool was offered.

    The missing text makes the answer invalid.
    """


def _choice_for_step(context: ModelContext, step: int) -> ToolChoice | None:
    """Return the tool choice of a step.

    A forced one applies to the first step only, or the turn would never end. One that only a client's tool can satisfy
    applies until such a tool is called, which ends the turn.
    """
    choice = context.tool_choice
    if step == 1 or choice in ("none", "auto", None):
        return choice
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    is_client_side = all(spec.client for spec in context.tools if name in (spec.name, None))
    return choice if is_client_side else None
