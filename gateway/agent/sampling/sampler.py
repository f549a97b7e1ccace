"""Model calls of a turn's MCP servers."""

import asyncio
import time

import msgspec

from gateway.agent.model_context import ModelContext, TurnContext
from gateway.agent.sampling.limits import SamplingLimits, SamplingRefused
from gateway.agent.sampling.messages import SamplingPrompt, build_sampling_result, parse_sampling_request
from gateway.common.concurrency import LightEvent
from gateway.common.logging import get_logger
from gateway.domain.errors import BudgetExceeded, ModelError, OutputInvalid, PromptTooLong
from gateway.domain.events import SamplingCompleted
from gateway.domain.messages import Answer, JsonObject, Question, ToolCall, Usage
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink

log = get_logger(__name__)

SAMPLING_TIMEOUT_SECONDS = 120.0


class TurnSampler:
    """Serves the requests for sampling and roots of one turn's servers.

    The model sees what the server sends, and nothing of the turn. Model calls are made one at a time and not beside one
    of the turn's own, because a turn has one reservation of budget: `begin_step()` and `end_step()` enclose those. Each
    is an event with its usage, which also counts the calls of a tool call across takeovers.
    """

    def __init__(self, model: Model, context: ModelContext, turn: TurnContext, limits: SamplingLimits) -> None:
        self._model = model
        self._context = context
        self._turn = turn
        self._limits = limits
        self._lock = asyncio.Lock()
        self._is_model_free = LightEvent()
        self._is_model_free.set()

    def begin_step(self) -> None:
        """Hold sampling back, because a step reserves budget."""
        self._is_model_free.clear()

    def end_step(self) -> None:
        """Let sampling go on, because the step's budget is settled."""
        self._is_model_free.set()

    async def answer_request(self, call_id: str, server: str, question: Question) -> Answer:
        """Answer a server's request after any necessary approval.

        Raises:
            SamplingRefused: the request exceeds a limit or a budget, or the model failed.
        """
        request = question.request
        assert request is not None
        if request["method"] == "roots/list":
            return Answer("accept")  # the connection knows the roots
        await self._is_model_free.wait()
        async with self._lock:
            return Answer("accept", await self._sample(call_id, server, request["params"]))

    async def _sample(self, call_id: str, server: str, params: JsonObject) -> JsonObject:
        turn, limits = self._turn, self._limits
        if turn.transcript.count_samplings(call_id) >= limits.calls:
            raise SamplingRefused(f"a tool call may ask for {limits.calls} model calls")
        if turn.transcript.usage.total_tokens >= limits.turn_tokens:
            raise SamplingRefused("the turn has used up its tokens")
        context, started_at = self._context, time.perf_counter()
        prompt = parse_sampling_request(params, max_tokens=limits.tokens, sees_images=context.sees_images)
        sink, answer, problem = _SamplingSink(turn), ModelAnswer("stop", Usage(), 0.0), None
        result: JsonObject = {}
        await turn.wait_for_capacity()
        try:
            call = self._build_call(prompt)
            await turn.reserve_budget(call)
            async with asyncio.timeout(SAMPLING_TIMEOUT_SECONDS):
                answer = await self._model.complete(call, sink)
            result = sink.build_result(context.model, answer.finish_reason, has_tools=bool(prompt.tools))
        except (ModelError, PromptTooLong, BudgetExceeded) as error:
            problem = error
        except SamplingRefused as error:
            problem = OutputInvalid(str(error))
        except TimeoutError:
            problem = OutputInvalid(f"The model did not answer within {SAMPLING_TIMEOUT_SECONDS:g} seconds.")
        except asyncio.CancelledError:
            await turn.settle_budget()
            raise
        duration_ms = round((time.perf_counter() - started_at) * 1000, 2)
        event = SamplingCompleted(
            call_id=call_id,
            server=server,
            model=context.model,
            usage=answer.usage,
            cost_usd=answer.cost_usd,
            duration_ms=duration_ms,
        )
        turn.emit(event if problem is None else msgspec.structs.replace(event, error=problem.to_error_info()))
        log.info("sampling_completed", server=server, code=problem and problem.code, duration_ms=duration_ms)
        await turn.settle_budget()
        await turn.wait_until_durable()
        if problem is not None:
            raise SamplingRefused(problem.message)
        return result

    def _build_call(self, prompt: SamplingPrompt) -> ModelCall:
        principal = self._context.principal
        return ModelCall(
            model=self._context.model,
            messages=prompt.messages,
            tools=prompt.tools,
            tool_choice=prompt.tool_choice,
            parameters=prompt.parameters,
            user=principal.user,
            allowed_models=principal.models,
            reads_text_calls=bool(prompt.tools),
            require_lease=self._turn.require_lease,
        )


class _SamplingSink(ModelSink):
    """Collects an answer for a server."""

    def __init__(self, turn: TurnContext) -> None:
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._is_refused = False
        self._turn = turn
        self.capacity = turn

    def build_result(self, model: str, finish_reason: str, *, has_tools: bool) -> JsonObject:
        text = "".join(self._texts)
        reason = "refusal" if self._is_refused else finish_reason
        return build_sampling_result(model, text, self._calls, reason, has_tools=has_tools)

    def on_accepted(self) -> None:
        """Ignore it: clients wait for the turn's own steps."""

    def on_text(self, text: str) -> None:
        self._texts.append(text)

    def on_refusal(self, text: str) -> None:
        self._is_refused = True
        self._texts.append(text)

    def on_reasoning(self, text: str) -> None:
        """Ignore reasoning, which servers do not get."""

    def on_tool_call(self, call: ToolCall) -> None:
        self._calls.append(call)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        """Ignore a tool that the model's server ran."""

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self._texts.clear()
        self._calls.clear()

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self._turn.record_failed_usage(usage, cost_usd)
