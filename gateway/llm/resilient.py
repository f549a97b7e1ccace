"""Retries, fallbacks and a circuit breaker around a model. No other layer retries.

Tool calls are repaired, or the model is told why they cannot be. A call is retried while nothing of it was shown, then
other models are tried, and a model that keeps failing is not called for a while. The sink is notified of each retry.
"""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from gateway.common.logging import get_logger
from gateway.domain.errors import (
    ModelError,
    ModelRateLimited,
    ModelUnavailable,
    PromptTooLong,
    ToolCallUnreadable,
    UpstreamRateLimited,
)
from gateway.domain.messages import Message, ToolCall, ToolSpec, Usage, matches_any_glob
from gateway.llm.catalog import Catalog
from gateway.llm.tool_repair.prompted_tools import PromptedToolCallParser, move_tools_into_prompt
from gateway.llm.tool_repair.repair import UnrepairableCall, extract_calls, repair_call
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink

log = get_logger(__name__)

_MAX_FEEDBACK_CHARS = 4_000
_FEEDBACK = "Your tool call could not be made: {0} Make it again, correctly, or answer without it."


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often to ask again (`retries` after failures, `repairs` after unusable calls), and how long to wait for it:
    `delay` doubles, `patience` is the longest. A model that failed `failures` times in a row is left alone for `rest`.
    """

    retries: int = 2
    repairs: int = 2
    delay: float = 0.5
    max_wait: float = 10.0
    failure_threshold: int = 5
    rest_seconds: float = 10.0
    max_rest_seconds: float = 120.0


class CircuitBreaker:
    """Circuit breaker of one model: after `rest_seconds`, one trial call decides whether it closes."""

    def __init__(self, policy: RetryPolicy, now: Callable[[], float]) -> None:
        self._policy = policy
        self._now = now
        self._failures = 0
        self._rest = policy.rest_seconds
        self._open_until = 0.0

    def check_wait(self) -> float:
        """Seconds until the model may be called; 0: now. After a rest, one caller per rest gets 0."""
        if self._failures < self._policy.failure_threshold:
            return 0.0
        left = self._open_until - self._now()
        if left <= 0:
            self._open_until = self._now() + self._rest
            return 0.0
        return left

    def record_success(self) -> None:
        self._failures, self._rest = 0, self._policy.rest_seconds

    def record_failure(self) -> None:
        self._failures += 1
        if self._failures > self._policy.failure_threshold:
            self._rest = min(self._rest * 2, self._policy.max_rest_seconds)
        if self._failures >= self._policy.failure_threshold:
            self._open_until = self._now() + self._rest


class ResilientModel(Model):
    """A model with retries and a circuit breaker. If it keeps failing, `fallbacks` are called in order."""

    def __init__(
        self,
        inner: Model,
        catalog: Catalog,
        *,
        fallbacks: tuple[str, ...] = (),
        policy: RetryPolicy | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._catalog = catalog
        self._fallbacks = fallbacks
        self._policy = policy or RetryPolicy()
        self._now = now
        self._breakers: dict[str, CircuitBreaker] = {}

    async def check(self) -> str | None:
        """See `Model.check`."""
        return await self._inner.check()

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """See `Model.complete`.

        Raises:
            PromptTooLong: the prompt cannot fit the model's window.
        """
        self._check_context_window(call)
        others = (model for model in self._fallbacks if matches_any_glob(model, call.allowed_models))
        models = list(dict.fromkeys((call.model, *others)))
        for number, (model, other) in enumerate(zip(models, [*models[1:], None], strict=True), start=1):
            watch = _AttemptSink(sink, call.tools)
            try:
                return await self._complete_with_accounting(msgspec.structs.replace(call, model=model), watch)
            except ModelError as error:
                if other is None or watch.has_output or not _is_worth_fallback(error):
                    raise
                log.warning("model_fallback", model=model, other=other, code=error.code)
                sink.on_retry(error.code, number, discard=watch.has_reasoning, model=other)
        raise AssertionError("unreachable")

    async def _complete_with_accounting(self, call: ModelCall, watch: "_AttemptSink") -> ModelAnswer:
        """Add the usage and cost of all attempts to the answer, or report them if all attempts fail."""
        cost = self._catalog.get_model_info(call.model).calculate_cost
        try:
            answer = await self._complete_with_retries(call, watch)
        except BaseException:
            if watch.usage.total_tokens:
                watch.sink.record_failed_usage(watch.usage, cost(watch.usage))
            raise
        return msgspec.structs.replace(answer, usage=watch.usage, cost_usd=cost(watch.usage))

    async def _complete_with_retries(self, call: ModelCall, watch: "_AttemptSink") -> ModelAnswer:
        failures = repairs = 0
        while True:
            watch.begin_attempt(hold_bad=repairs < self._policy.repairs)
            try:
                answer = await self._attempt_call(call, watch)
                problem = watch.problem
            except ToolCallUnreadable as error:
                if watch.recover_calls(error.written):
                    return ModelAnswer("tool_calls", watch.usage)
                answer, problem = None, watch.problem or "it was no JSON that fits a tool on offer."
                watch.rejected_text = error.written
            except ModelError as error:
                failures += 1
                wait = self._get_retry_delay(error, failures)
                if watch.has_output or failures > self._policy.retries or wait is None:
                    raise
                watch.sink.on_retry(error.code, failures, discard=watch.has_reasoning)
                log.warning("model_retry", model=call.model, attempt=failures, code=error.code)
                await asyncio.sleep(wait)
                continue
            if answer is not None and problem is None:
                return answer
            repairs += 1
            if watch.has_calls or repairs > self._policy.repairs + 1:
                raise ToolCallUnreadable
            watch.sink.on_retry(ToolCallUnreadable.code, repairs, discard=watch.has_output or watch.has_reasoning)
            log.warning("tool_call_again", model=call.model, attempt=repairs)
            call = _with_feedback(
                call, watch.rejected_text, problem or "", without_tools=repairs > self._policy.repairs
            )

    async def _attempt_call(self, call: ModelCall, watch: "_AttemptSink") -> ModelAnswer:
        breaker = self._breakers.setdefault(call.model, CircuitBreaker(self._policy, self._now))
        if (wait := breaker.check_wait()) > 0:
            raise ModelUnavailable(
                "This model keeps failing and is not called for a while.", retry_after=round(wait, 1)
            )
        native = not call.tools or self._catalog.get_model_info(call.model).tools
        try:
            answer = await (self._inner.complete(call, watch) if native else self._complete_prompted(call, watch))
        except BaseException as error:
            watch.record_broken_call(call, error)
            if isinstance(error, ModelError):
                breaker.record_failure() if error.retryable else breaker.record_success()
            raise
        watch.usage = watch.usage + answer.usage
        breaker.record_success()
        return answer

    async def _complete_prompted(self, call: ModelCall, watch: "_AttemptSink") -> ModelAnswer:
        """Complete a call with a model that writes tool calls into its text."""
        written = PromptedToolCallParser(watch, [tool.name for tool in call.tools])
        answer = await self._inner.complete(move_tools_into_prompt(call), written)
        return msgspec.structs.replace(answer, finish_reason="tool_calls") if written.finish_text() else answer

    def _get_retry_delay(self, error: ModelError, failures: int) -> float | None:
        """Seconds to wait before a retry; None if a retry would not help or the wait would be too long."""
        if error.retry_after is not None and (error.retryable or isinstance(error, ModelRateLimited)):
            return error.retry_after if error.retry_after <= self._policy.max_wait else None
        if not error.retryable:
            return None
        return min(self._policy.delay * 2 ** (failures - 1), self._policy.max_wait) * random.uniform(0.5, 1.0)  # noqa: S311

    def _check_context_window(self, call: ModelCall) -> None:
        info = self._catalog.get_model_info(call.model)
        tokens = call.estimate_tokens()
        if tokens >= info.context_window:
            raise PromptTooLong(
                f"The prompt has about {tokens:,} tokens, and the window of {info.id!r} holds {info.context_window:,} "
                "with the answer: shorten the messages.",
                param="messages",
            )


def _is_worth_fallback(error: ModelError) -> bool:
    return error.retryable or isinstance(error, ModelRateLimited | UpstreamRateLimited)


def _with_feedback(call: ModelCall, wrote: str, problem: str, *, without_tools: bool) -> ModelCall:
    """The same call with the rejected text and the problem appended; without tools for the last attempt."""
    again = _FEEDBACK.format(problem)
    if without_tools:
        again = f"Your tool call could not be made: {problem} Answer without tools, from what you have."
    said = Message(role="assistant", content=wrote[:_MAX_FEEDBACK_CHARS] or "(an unreadable tool call)")
    messages = (*call.messages, said, Message(role="user", content=again))
    if without_tools:
        return msgspec.structs.replace(call, messages=messages, tools=(), tool_choice=None)
    return msgspec.structs.replace(call, messages=messages)


class _AttemptSink(ModelSink):
    """The sink as the model's stream sees it: mends its calls, and knows what was shown of the answer.

    With `hold_bad`, a call that cannot be mended is held back, and its `problem` told: the model is asked again,
    unless text or calls are out already. Otherwise the loop answers it with its problem, as a tool's error.
    """

    def __init__(self, sink: ModelSink, tools: tuple[ToolSpec, ...]) -> None:
        self.sink = sink
        self.wait_for_capacity = sink.wait_for_capacity
        self._clients = {tool.name for tool in tools if tool.client}
        self._schemas = {tool.name: tool.input_schema for tool in tools}
        self.usage = Usage()
        self.begin_attempt(hold_bad=False)

    def begin_attempt(self, *, hold_bad: bool) -> None:
        self._hold_bad = hold_bad
        self.has_output = self.has_reasoning = self.has_calls = False
        self.problem: str | None = None
        self.rejected_text = ""
        self._answering = False
        self._written = 0

    def on_accepted(self) -> None:
        self._answering = True
        self.sink.on_accepted()

    def on_text(self, text: str) -> None:
        self.has_output = True
        self._written += len(text)
        self.sink.on_text(text)

    def on_reasoning(self, text: str) -> None:
        self.has_reasoning = True
        self._written += len(text)
        self.sink.on_reasoning(text)

    def record_broken_call(self, call: ModelCall, error: BaseException) -> None:
        """Count the estimated usage of a broken-off call, if the model had begun to answer."""
        unread = len(error.written) if isinstance(error, ToolCallUnreadable) else 0
        if self._answering or unread:
            self.usage = self.usage + call.estimate_usage(self._written + unread)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.sink.record_failed_usage(usage, cost_usd)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self.has_output = True
        self.sink.on_server_tool_call(call, output)

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self.sink.on_retry(reason, attempt, discard=discard, model=model)

    def on_tool_call(self, call: ToolCall) -> None:
        self._written += len(call.arguments)
        if self.problem is not None:
            return  # the step is asked for again
        mended = repair_call(call.name, call.arguments, self._schemas)
        if call.name in self._clients and (isinstance(mended, UnrepairableCall) or not mended.repairs):
            self._emit_call(call)  # the client judges calls of its own tools
        elif not isinstance(mended, UnrepairableCall):
            if mended.repairs:
                log.info("tool_call_mended", tool=mended.name, how=mended.repairs)
            arguments = msgspec.json.encode(mended.arguments).decode() if mended.repairs else call.arguments or "{}"
            self._emit_call(ToolCall(call.id, mended.name, arguments))
        elif self._hold_bad and not self.has_output:
            self.problem = mended.problem
            self.rejected_text = f"{call.name}({call.arguments})"
        else:
            self._emit_call(ToolCall(call.id, call.name, call.arguments, mended.problem))

    def _emit_call(self, call: ToolCall) -> None:
        self.has_output = self.has_calls = True
        self.sink.on_tool_call(call)

    def recover_calls(self, written: str) -> bool:
        """Emit the calls in a text that the server could not parse, if all can be repaired; else return False."""
        found = extract_calls(written, self._schemas)
        mended = [repair_call(call.name, call.arguments, self._schemas) for call in found]
        bad = [each.problem for each in mended if isinstance(each, UnrepairableCall)]
        if bad or not found or self.has_calls:
            self.problem = bad[0] if bad else None
            return False
        for call in found:
            self.on_tool_call(call)
        return True
