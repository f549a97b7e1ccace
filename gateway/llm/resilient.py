"""Retries of failed model calls, fallbacks and a circuit breaker.

`AgentLoop` repeats a call only for invalid structured output, and `McpToolbox` a tool call after a lost connection.
Tool calls are repaired, or the model gets an error message and another attempt. A call is retried while none of its
output was shown, then fallback models are called. A model that keeps failing is not called for a while. The sink is
notified of each retry.
"""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from gateway.common.logging import get_logger
from gateway.domain.errors import (
    ModelError,
    ModelNotPermitted,
    ModelRateLimited,
    ModelUnavailable,
    PromptTooLong,
    ToolCallUnreadable,
    UpstreamRateLimited,
)
from gateway.domain.images import replace_images
from gateway.domain.messages import Message, ToolCall, ToolSpec, Usage, matches_any_glob
from gateway.llm.catalog import Catalog
from gateway.llm.circuit_breaker import CircuitBreaker, RetryPolicy
from gateway.llm.short_names import OwnNameSink, ShortNames
from gateway.llm.stream import check_call_count
from gateway.llm.tool_repair.coercion import MAX_OPERATIONS
from gateway.llm.tool_repair.prompted_tools import PromptedToolCallParser, move_tools_into_prompt
from gateway.llm.tool_repair.repair import (
    RepairedCall,
    UnrepairableCall,
    choose_arguments_text,
    extract_calls,
    repair_calls,
)
from gateway.llm.tool_repair.text_calls import TextCallParser
from gateway.llm.usage import complete_usage
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink, ModelState
from gateway_runtime.json_schema.validation import OperationBudget

log = get_logger(__name__)

_MAX_FEEDBACK_CHARS = 4_000
_EMPTY_ANSWER = "The model's answer is empty: it has neither text nor tool calls."
_FEEDBACK = "Your tool call could not be made: {0} Make it again, correctly, or answer without it."


class ResilientModel(Model):
    """A model with retries and a circuit breaker.

    If it keeps failing, `fallbacks` are called in order.
    """

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

    def list_states(self) -> list[ModelState]:
        """See `Model.list_states`."""
        return [breaker.describe(model) for model, breaker in sorted(self._breakers.items())]

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """See `Model.complete`.

        Raises:
            PromptTooLong: the prompt cannot fit the model's window.
        """
        self._check_context_window(call)
        if names := ShortNames(call):
            call, sink = names.shorten_call(call), OwnNameSink(sink, names)
        fallbacks = (model for model in self._fallbacks if matches_any_glob(model, call.allowed_models))
        models = list(dict.fromkeys((call.model, *fallbacks)))
        for number, (model, fallback) in enumerate(zip(models, [*models[1:], None], strict=True), start=1):
            attempt = _AttemptSink(sink, call.tools)
            try:
                return await self._complete_with_accounting(self._address_call(call, model), attempt)
            except ModelError as error:
                if fallback is None or attempt.has_output or not _is_worth_fallback(error):
                    raise
                log.warning("model_fallback_used", model=model, fallback=fallback, code=error.code)
                sink.on_retry(error.code, number, discard=attempt.has_reasoning, model=fallback)
        raise AssertionError("unreachable")

    def _address_call(self, call: ModelCall, model: str) -> ModelCall:
        """Return the call for a model, with parameters that it takes."""
        if model == call.model:
            return call
        info = self._catalog.get_model_info(model)
        parameters = self._catalog.fit_defaults(call.parameters, info)
        messages = call.messages if info.may_see_images else replace_images(call.messages)
        return msgspec.structs.replace(call, model=model, messages=messages, parameters=parameters)

    async def _complete_with_accounting(self, call: ModelCall, attempt: "_AttemptSink") -> ModelAnswer:
        """Add the usage and cost of all attempts to the answer.

        If all attempts fail, report them.
        """
        cost = self._catalog.get_model_info(call.model).calculate_cost
        try:
            answer = await self._complete_with_retries(call, attempt)
        except BaseException:
            if attempt.usage.total_tokens:
                attempt.sink.record_failed_usage(attempt.usage, cost(attempt.usage))
            raise
        return msgspec.structs.replace(answer, usage=attempt.usage, cost_usd=cost(attempt.usage))

    async def _complete_with_retries(self, call: ModelCall, attempt: "_AttemptSink") -> ModelAnswer:
        failures = repairs = 0
        is_asked_again = False
        while True:
            attempt.begin_attempt(hold_invalid=repairs < self._policy.repairs)
            try:
                answer = await self._attempt_call(call, attempt)
                problem = attempt.problem
            except ToolCallUnreadable as error:
                if attempt.recover_calls(error.written):
                    return ModelAnswer("tool_calls", attempt.usage)
                answer, problem = None, attempt.problem or "it was not valid JSON for an available tool."
                attempt.rejected_text = error.written
            except ModelError as error:
                failures += 1
                wait = self._get_retry_delay(error, failures)
                if attempt.has_output or failures > self._policy.retries or wait is None:
                    raise
                attempt.sink.on_retry(error.code, failures, discard=attempt.has_reasoning)
                log.warning("model_call_retried", model=call.model, attempt=failures, code=error.code)
                await asyncio.sleep(wait)
                continue
            if answer is not None and problem is None:
                if attempt.has_output or answer.finish_reason != "stop":
                    return answer
                if is_asked_again:
                    return msgspec.structs.replace(answer, warning=_EMPTY_ANSWER)
                is_asked_again = True
                attempt.sink.on_retry("empty_answer", 1, discard=attempt.has_reasoning)
                continue
            repairs += 1
            if attempt.has_calls or repairs > self._policy.repairs + 1:
                raise ToolCallUnreadable
            # Clients cannot take back text that was shown, so it stands.
            discard = attempt.has_reasoning and not attempt.has_output
            attempt.sink.on_retry(ToolCallUnreadable.code, repairs, discard=discard)
            log.warning("invalid_tool_call_retried", model=call.model, attempt=repairs)
            call = _with_feedback(
                call, attempt.rejected_text, problem or "", without_tools=repairs > self._policy.repairs
            )

    async def _attempt_call(self, call: ModelCall, attempt: "_AttemptSink") -> ModelAnswer:
        breaker = self._breakers.setdefault(call.model, CircuitBreaker(self._policy, self._now))
        if (wait := breaker.check_wait()) > 0:
            raise ModelUnavailable(
                "This model keeps failing and is not called for a while.", retry_after=round(wait, 1)
            )
        if not call.tools:
            complete = self._inner.complete
        elif self._catalog.get_model_info(call.model).tools:
            complete = self._complete_native
        else:
            complete = self._complete_prompted
        try:
            answer = await complete(call, attempt)
        except BaseException as error:
            attempt.record_broken_call(call, error)
            if isinstance(error, ModelError):
                breaker.record_failure() if error.retryable else breaker.record_success()
            raise
        usage = answer.usage
        if not (usage.prompt_tokens and usage.completion_tokens):
            usage = complete_usage(usage, attempt.estimate_usage(call))
        attempt.usage = attempt.usage + usage
        breaker.record_success()
        return answer

    async def _complete_native(self, call: ModelCall, attempt: "_AttemptSink") -> ModelAnswer:
        """Complete a call of a model with native tool calls.

        Some models write a call into their text nevertheless.
        """
        if self._policy.text_call_chars == 0 or call.tool_choice == "none" or not call.reads_text_calls:
            return await self._inner.complete(call, attempt)
        parser = TextCallParser(attempt, attempt.schemas, self._policy.text_call_chars)
        try:
            answer = await self._inner.complete(call, parser)
        except BaseException:
            attempt.add_unshown_chars(parser.held_chars)
            raise
        if answer.finish_reason in ("length", "content_filter"):
            parser.release_text()
            return answer
        return msgspec.structs.replace(answer, finish_reason="tool_calls") if parser.finish_text() else answer

    async def _complete_prompted(self, call: ModelCall, attempt: "_AttemptSink") -> ModelAnswer:
        """Complete a call of a model with prompted tools.

        Such a model writes tool calls into its text.
        """
        parser = PromptedToolCallParser(attempt, [tool.name for tool in call.tools])
        answer = await self._inner.complete(move_tools_into_prompt(call), parser)
        return msgspec.structs.replace(answer, finish_reason="tool_calls") if parser.finish_text() else answer

    def _get_retry_delay(self, error: ModelError, failures: int) -> float | None:
        """Seconds to wait before a retry.

        None if a retry would not help or the wait would be too long.
        """
        if error.retry_after is not None and (error.retryable or isinstance(error, ModelRateLimited)):
            return error.retry_after if error.retry_after <= self._policy.max_wait else None
        if not error.retryable:
            return None
        return min(self._policy.delay * 2 ** (failures - 1), self._policy.max_wait) * random.uniform(0.5, 1.0)  # noqa: S311

    def _check_context_window(self, call: ModelCall) -> None:
        info = self._catalog.get_model_info(call.model)
        tokens = call.estimated_tokens
        if tokens >= info.context_window and "context_window" not in info.assumed:
            raise PromptTooLong(
                f"The prompt has about {tokens:,} tokens. The context window of {info.id!r} holds "
                f"{info.context_window:,} tokens, including the answer. Shorten the messages.",
                param="messages",
            )


def _is_worth_fallback(error: ModelError) -> bool:
    return error.retryable or isinstance(error, ModelNotPermitted | ModelRateLimited | UpstreamRateLimited)


def _with_feedback(call: ModelCall, rejected_text: str, problem: str, *, without_tools: bool) -> ModelCall:
    """Return the call with the rejected text and the problem appended.

    The last attempt has no tools.
    """
    feedback = _FEEDBACK.format(problem)
    if without_tools:
        feedback = f"Your tool call could not be made: {problem} Answer without tools, from what you have."
    rejected = Message(role="assistant", content=rejected_text[:_MAX_FEEDBACK_CHARS] or "(an unreadable tool call)")
    messages = (*call.messages, rejected, Message(role="user", content=feedback))
    if without_tools:
        return msgspec.structs.replace(call, messages=messages, tools=(), tool_choice=None)
    return msgspec.structs.replace(call, messages=messages)


class _AttemptSink(ModelSink):
    """Sink that repairs tool calls and records the shown output.

    It wraps the caller's sink. With `hold_invalid`, a call that cannot be repaired is held back and sets `problem`, so
    that the model is called again; not after text or other calls were shown. Otherwise the call is emitted with its
    problem, which becomes the tool's error. Blank text waits for other text: alone it is no answer. It counts the
    native calls of an attempt together with those in its text.
    """

    def __init__(self, sink: ModelSink, tools: tuple[ToolSpec, ...]) -> None:
        self.sink = sink
        self.capacity = sink.capacity
        self._client_tools = tuple(tool.name for tool in tools if tool.client)
        self.schemas = {tool.name: tool.input_schema for tool in tools}
        self.usage = Usage()
        self.begin_attempt(hold_invalid=False)

    def begin_attempt(self, *, hold_invalid: bool) -> None:
        self._hold_invalid = hold_invalid
        self.has_output = self.has_reasoning = self.has_calls = False
        self.problem: str | None = None
        self.rejected_text = ""
        self._is_accepted = False
        self._output_chars = 0
        self._blank_texts: list[str] = []
        self.on_text = self._hold_blank_text
        self._repair_budget = OperationBudget(MAX_OPERATIONS)
        self._call_count = 0

    def on_accepted(self) -> None:
        self._is_accepted = True
        self.sink.on_accepted()

    def on_text(self, text: str) -> None:
        self.has_output = True
        self._output_chars += len(text)
        self.sink.on_text(text)

    def _hold_blank_text(self, text: str) -> None:
        if text.isspace() and self.on_text == self._hold_blank_text:
            self._output_chars += len(text)
            self._blank_texts.append(text)
            return
        self.__dict__.pop("on_text", None)
        blank_text = "".join(self._blank_texts)
        self._blank_texts.clear()
        self._output_chars -= len(blank_text)
        self.on_text(blank_text + text)

    def on_refusal(self, text: str) -> None:
        self.has_output = True
        self._output_chars += len(text)
        self.sink.on_refusal(text)

    def on_reasoning(self, text: str) -> None:
        self.has_reasoning = True
        self._output_chars += len(text)
        self.sink.on_reasoning(text)

    def estimate_usage(self, call: ModelCall) -> Usage:
        """Estimate the usage of a call whose server reports none."""
        return call.estimate_usage(self._output_chars)

    def add_unshown_chars(self, count: int) -> None:
        """Count output that was never shown."""
        self._output_chars += count

    def record_broken_call(self, call: ModelCall, error: BaseException) -> None:
        """Count the estimated usage of a broken-off call.

        Only if the model had begun to answer.
        """
        unread_chars = len(error.written) if isinstance(error, ToolCallUnreadable) else 0
        if self._is_accepted or unread_chars:
            self.usage = self.usage + call.estimate_usage(self._output_chars + unread_chars)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.sink.record_failed_usage(usage, cost_usd)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self.has_output = True
        self.sink.on_server_tool_call(call, output)

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self.sink.on_retry(reason, attempt, discard=discard, model=model)

    def on_tool_call(self, call: ToolCall) -> None:
        self._output_chars += len(call.arguments)
        if self.problem is not None:
            return  # the step will be retried
        repaired_calls = repair_calls(call, self.schemas, self._repair_budget)
        self._call_count += len(repaired_calls)
        check_call_count(self._call_count)
        for written, repaired in repaired_calls:
            self._add_repaired_call(written, repaired)

    def _add_repaired_call(self, call: ToolCall, repaired: RepairedCall | UnrepairableCall) -> None:
        if self.problem is not None:
            return
        if call.problem:
            repaired = UnrepairableCall(f"The call of {call.name[:80] or 'a tool'} was not made: {call.problem}")
        if isinstance(repaired, RepairedCall):
            if repaired.repairs:
                log.info("tool_call_repaired", tool=repaired.name, repairs=repaired.repairs)
            arguments = choose_arguments_text(call.arguments, repaired)
            self._emit_call(msgspec.structs.replace(call, name=repaired.name, arguments=arguments))
        elif call.name in self._client_tools and not call.problem:
            self._emit_call(call)  # the client checks calls of its own tools
        elif self._hold_invalid and not self.has_output:
            self.problem = repaired.problem
            self.rejected_text = f"{call.name}({call.arguments})"
        elif call.name in self._client_tools and not self.has_output:
            log.info("cut_tool_call_dropped", tool=call.name)  # the model was told before
        else:
            self._emit_call(msgspec.structs.replace(call, problem=repaired.problem))

    def _emit_call(self, call: ToolCall) -> None:
        self.has_output = self.has_calls = True
        self.sink.on_tool_call(call)

    def recover_calls(self, text: str) -> bool:
        """Emit the calls in a text that the server rejected.

        The server could not parse it. Return False, and emit none, unless all can be repaired.

        Raises:
            ModelAnswerTooLong: there are too many calls.
        """
        calls = extract_calls(text, self.schemas)
        check_call_count(len(calls))
        results = [result for call in calls for _, result in repair_calls(call, self.schemas, self._repair_budget)]
        problems = [result.problem for result in results if isinstance(result, UnrepairableCall)]
        if problems or not calls or self.has_calls:
            self.problem = problems[0] if problems else None
            return False
        for call in calls:
            self.on_tool_call(call)
        return True
