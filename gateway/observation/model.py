"""Model calls, and their waits for rate limits."""

import time
from typing import Any

from gateway.agent.loop import ModelSink
from gateway.domain.messages import Usage
from gateway.llm.rate_limit.limiter import ModelRateLimiter, RateLimitPermit
from gateway.llm.resilient import ResilientModel
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.content import CapturingSink, describe_messages
from gateway.observation.error_types import find_error_type
from gateway.ports.model import ModelAnswer, ModelCall
from gateway.ports.observer import AttributeValue, Observer, Span
from gateway_runtime.redaction.redactor import Redactor


class ObservedModel(ResilientModel):
    """A model whose calls are spans.

    Tries and fallbacks are their events.
    """

    def __init__(self, *arguments: Any, observer: Observer, provider: str, redactor: Redactor, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observer = observer
        self._provider = provider
        self._redactor = redactor

    def list_open_circuits(self) -> dict[str, bool]:
        """Return whether the circuit breaker of each called model is open."""
        return {model: breaker.is_open for model, breaker in self._breakers.items()}

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """See `Model.complete`."""
        observer, started_at = self._observer, time.perf_counter()
        attributes = _describe_call(call) | {n.PROVIDER: self._provider}
        with observer.open_span(f"chat {call.model}", attributes, kind="client") as span:
            watch = _SinkWatch(observer, span, call.model)
            captured: CapturingSink | None = None
            if observer.captures_content:
                span.set_attributes(describe_messages(call, self._redactor))
                sink = captured = CapturingSink(sink)
            watch.attach(sink)
            error_type = ""
            try:
                answer = await super().complete(call, sink)
            except BaseException as error:
                error_type = find_error_type(error)
                span.fail(error_type)
                raise
            finally:
                ended_at = time.perf_counter()
                labels = ("chat", self._provider, call.model, watch.model)
                observer.record_value(f.MODEL_DURATION, ended_at - started_at, *labels, error_type)
                if watch.first_chunk_at is not None:
                    observer.record_value(f.FIRST_CHUNK, watch.first_chunk_at - started_at, *labels)
            if captured is not None:
                span.set_attributes(captured.describe_output(answer.finish_reason, self._redactor))
            span.set_attributes({**describe_usage(answer.usage), n.FINISH_REASONS: [answer.finish_reason]})
            span.set_attributes({n.RESPONSE_MODEL: watch.model})
            self._record_tokens(watch, labels, answer.usage, ended_at)
            return answer

    def _record_tokens(self, watch: "_SinkWatch", labels: tuple[str, ...], usage: Usage, ended_at: float) -> None:
        observer = self._observer
        observer.record_value(f.TOKEN_USAGE, usage.prompt_tokens, *labels, "input")
        observer.record_value(f.TOKEN_USAGE, usage.completion_tokens, *labels, "output")
        if watch.first_chunk_at is not None and usage.completion_tokens > 1:
            seconds = (ended_at - watch.first_chunk_at) / (usage.completion_tokens - 1)
            observer.record_value(f.OUTPUT_TOKEN_TIME, seconds, *labels)


class _SinkWatch:
    """Sees the first chunk and the retries of a call.

    It sees no token. `model` is the model that is called now.
    """

    def __init__(self, observer: Observer, span: Span, model: str) -> None:
        self._observer = observer
        self._span = span
        self.model = model
        self.first_chunk_at: float | None = None

    def attach(self, sink: ModelSink) -> None:
        """Replace two methods of a sink that each attempt calls once."""
        on_accepted, on_retry = sink.on_accepted, sink.on_retry

        def note_acceptance() -> None:
            if self.first_chunk_at is None:
                self.first_chunk_at = time.perf_counter()
            on_accepted()

        def note_retry(reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
            self._note_retry(reason, attempt, model)
            on_retry(reason, attempt, discard=discard, model=model)

        sink.on_accepted, sink.on_retry = note_acceptance, note_retry

    def _note_retry(self, reason: str, attempt: int, fallback: str | None) -> None:
        attributes: dict[str, AttributeValue] = {n.ERROR_TYPE: reason, "gateway.attempt": attempt}
        if fallback is None:
            self._observer.increase_counter(f.MODEL_RETRIES, 1, self.model, reason)
            self._span.add_event("gateway.retry", attributes)
            return
        self._observer.increase_counter(f.MODEL_FALLBACKS, 1, self.model, fallback)
        self._span.add_event("gateway.fallback", {**attributes, n.MODEL: fallback})
        self.model = fallback


class ObservedLimiter(ModelRateLimiter):
    """Rate limiter whose waits are spans.

    A call that need not wait has none.
    """

    def __init__(self, *, observer: Observer, **options: Any) -> None:
        super().__init__(**options)
        self._observer = observer

    async def wait_for_permit(self, permit: RateLimitPermit, max_wait_seconds: float) -> None:
        """See `ModelRateLimiter.wait_for_permit`."""
        started_at = time.perf_counter()
        with self._observer.open_span("wait queue", {n.WAIT: "model_queue", n.MODEL: permit.queue.model}):
            try:
                await super().wait_for_permit(permit, max_wait_seconds)
            finally:
                self._observer.record_value(f.WAITS, time.perf_counter() - started_at, "model_queue")


def _describe_call(call: ModelCall) -> dict[str, AttributeValue]:
    parameters = call.parameters
    optional: dict[str, AttributeValue | None] = {
        "gen_ai.request.temperature": parameters.temperature,
        "gen_ai.request.top_p": parameters.top_p,
        "gen_ai.request.max_tokens": parameters.max_tokens,
        "gen_ai.request.seed": parameters.seed,
        "gen_ai.request.frequency_penalty": parameters.frequency_penalty,
        "gen_ai.request.presence_penalty": parameters.presence_penalty,
        "gen_ai.output.type": "json" if call.response_format else None,
    }
    known = {name: value for name, value in optional.items() if value is not None}
    return {n.OPERATION: "chat", n.MODEL: call.model, "gen_ai.request.stream": True, **known}


def describe_usage(usage: Usage) -> dict[str, AttributeValue]:
    """Return the attributes of used tokens."""
    return {
        n.INPUT_TOKENS: usage.prompt_tokens,
        n.OUTPUT_TOKENS: usage.completion_tokens,
        n.CACHED_TOKENS: usage.cached_tokens,
        n.REASONING_TOKENS: usage.reasoning_tokens,
    }
