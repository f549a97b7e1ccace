"""Interfaces of models: calls, answers, output sinks and the catalogue."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import msgspec

from gateway.domain.messages import JsonObject, Message, Parameters, ToolCall, ToolChoice, ToolSpec, Usage
from gateway.domain.tokens import CHARS_PER_TOKEN, count_message_quarters
from gateway.ports.start_check import StartCheck, allow_start


class ModelCall(msgspec.Struct, frozen=True, dict=True):
    """A call of a model.

    `response_format` has OpenAI's shape and excludes tools. `user` is the caller. `allowed_models` are globs over the
    models that the caller may use; None: all. `reads_text_calls`: a text that is nothing but tool calls becomes calls.
    `require_lease` runs right before each request to the model's server. `client_indexes` are the client's indexes of
    the first messages; None: the message is not the client's. `message_paths` are the client's names of its messages,
    if these are not `messages.0` and so on.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    parameters: Parameters = Parameters()
    response_format: JsonObject | None = None
    user: str = ""
    allowed_models: tuple[str, ...] | None = None
    reads_text_calls: bool = True
    require_lease: StartCheck = allow_start
    client_indexes: tuple[int | None, ...] = ()
    message_paths: tuple[str, ...] = ()

    @cached_property
    def estimated_tokens(self) -> int:
        """Estimate of the prompt's tokens.

        An exact count would need each model's tokenizer.
        """
        tools = sum(tool.prompt_chars for tool in self.tools)
        return (sum(map(count_message_quarters, self.messages)) + tools) // CHARS_PER_TOKEN

    def estimate_usage(self, output_chars: int) -> Usage:
        """Estimate the usage of a broken-off call.

        Only the end of a stream reports the exact usage.
        """
        prompt, completion = self.estimated_tokens, -(-output_chars // CHARS_PER_TOKEN)
        return Usage(prompt, completion, prompt + completion)


class ModelAnswer(msgspec.Struct, frozen=True):
    """The end of a model's answer.

    Its text and its calls went to the sink. `finish_reason` is `stop`, `tool_calls`, `length` or `content_filter`.
    `cost_usd` is None if the price of the model is unknown. `warning` tells people what was odd.
    """

    finish_reason: str
    usage: Usage
    cost_usd: float | None = None
    warning: str = ""


class SinkCapacity(Protocol):
    """How much output a sink can take."""

    def has_capacity(self) -> bool:
        """Whether `wait_for_capacity` would return at once."""
        ...

    async def wait_for_capacity(self) -> None:
        """Wait until the sink can take more output."""
        ...


class ModelSink(Protocol):
    """Receives a model's output in order.

    It gets at most one text for each read of the socket.
    """

    capacity: SinkCapacity
    """Asked after each read; wrappers pass on the inner one."""

    @abstractmethod
    def on_accepted(self) -> None:
        """The server has accepted the request: the first valid chunk arrived."""
        ...

    @abstractmethod
    def on_text(self, text: str) -> None: ...
    @abstractmethod
    def on_reasoning(self, text: str) -> None: ...

    @abstractmethod
    def on_refusal(self, text: str) -> None:
        """The model refused to answer, in these words."""
        ...

    @abstractmethod
    def on_tool_call(self, call: ToolCall) -> None:
        """The model called a tool. The arguments are complete."""
        ...

    @abstractmethod
    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        """The model's server executed a tool itself."""
        ...

    @abstractmethod
    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        """The call is retried, with another model if `model` is set.

        With `discard`, the output of the failed attempt must be dropped.
        """
        ...

    @abstractmethod
    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        """Count the usage of a call that failed or was cancelled."""
        ...


class ModelInfo(msgspec.Struct, frozen=True):
    """An available model. Windows in tokens; prices in USD per million tokens.

    `price_hour` is that of an hour of audio. `tools`: supports native tool calls; without them, the model writes calls
    into its text. `parallel_calls`: makes several calls in one step. `not_taken`: parameters that its server rejects.
    `assumed`: limits that nobody told; they serve as estimates and are not enforced.
    `input_modalities`: such as text and image; empty: unknown.
    """

    id: str
    context_window: int
    max_output_tokens: int
    status: str = "unknown"
    owned_by: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    price_cached: float | None = None
    price_hour: float | None = None
    reasoning_efforts: tuple[str, ...] = ()
    tools: bool = True
    parallel_calls: bool = True
    strict_schema: bool = False
    not_taken: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    input_modalities: tuple[str, ...] = ()

    @property
    def sees_images(self) -> bool:
        """Whether the model is known to see images."""
        return "image" in self.input_modalities

    @property
    def may_see_images(self) -> bool:
        return self.sees_images or not self.input_modalities

    def calculate_cost(self, usage: Usage) -> float | None:
        """Return the cost of the tokens in USD.

        None if the price is unknown.
        """
        if self.price_in is None or self.price_out is None:
            return None
        cached_price = self.price_in if self.price_cached is None else self.price_cached
        uncached_tokens = usage.prompt_tokens - usage.cached_tokens
        prompt_cost = uncached_tokens * self.price_in + usage.cached_tokens * cached_price
        return round((prompt_cost + usage.completion_tokens * self.price_out) / 1_000_000, 9)


class ModelState(msgspec.Struct, frozen=True):
    """Circuit breaker of a model that was called.

    `failures` follow the last success. An open one fails calls at once, for `retry_after_seconds`.
    """

    model: str
    failures: int
    is_open: bool
    retry_after_seconds: float


class Model(Protocol):
    """A model server."""

    @abstractmethod
    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """Stream one answer into `sink`. The returned usage includes failed attempts.

        Raises:
            ModelError: the server rejects the call, breaks off or cannot be reached.
        """
        ...

    @abstractmethod
    async def check(self) -> str | None:
        """Return the problem of the model's server; None if it answers.

        The message may be shown to clients.
        """
        ...

    def list_states(self) -> Sequence[ModelState]:
        """Return the known states of models that were called."""
        return ()


PLAIN_SUFFIX = ":plain"
"""Ends the names of models without the gateway's tools."""


class ModelCatalog(Protocol):
    """The catalogue of available models."""

    @abstractmethod
    def resolve(self, model: str) -> tuple[ModelInfo, tuple[str, ...]]:
        """Return the model for a requested id, and warnings.

        Warnings report that it is another model.

        Raises:
            ModelNotFound: the model is unknown, or it is retired and aliases are off.
        """
        ...

    @abstractmethod
    def adapt_parameters(
        self, parameters: Parameters, model: ModelInfo, *, drop: bool
    ) -> tuple[Parameters, tuple[str, ...]]:
        """Return the supported parameters, and warnings.

        There is a warning for each dropped parameter.

        Raises:
            UnsupportedParameter: the model does not support a parameter or its value, and `drop` is off.
        """
        ...

    @abstractmethod
    def fit_defaults(self, defaults: Parameters, model: ModelInfo) -> Parameters:
        """Return the parameters that the model is known to take.

        They were not meant for this model: an administrator's defaults, or those of a request that falls back to it.
        """
        ...

    @abstractmethod
    def split_plain(self, model: str) -> tuple[str, bool]:
        """Return a requested id without `PLAIN_SUFFIX`, and whether it had it."""
        ...

    @abstractmethod
    def get_model_info(self, model: str) -> ModelInfo:
        """Return the data of a model, or defaults for an unknown model."""
        ...

    @abstractmethod
    def list_models(self) -> list[ModelInfo]: ...
