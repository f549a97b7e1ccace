"""What the agent loop asks of a model, whatever server it runs on."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from gateway.domain.messages import JsonObject, Message, Parameters, ToolCall, ToolChoice, ToolSpec, Usage

_CHARS_PER_TOKEN = 4


class ModelCall(msgspec.Struct, frozen=True):
    """One call of a model. `response_format` is OpenAI's, and goes without tools; `user` is for whom it is made, and
    `allowed` the globs over the models that they may ask, None: all."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    parameters: Parameters = Parameters()
    response_format: JsonObject | None = None
    user: str = ""
    allowed_models: tuple[str, ...] | None = None

    def estimate_tokens(self) -> int:
        """About how many tokens the prompt takes: counting exactly would need each model's tokenizer."""
        tools = sum(tool.prompt_chars for tool in self.tools)
        return (sum(len(message.text) for message in self.messages) + tools) // _CHARS_PER_TOKEN

    def estimate_usage(self, output_chars: int) -> Usage:
        """About what was used up when the model had written so many characters: only a stream's end tells exactly."""
        prompt, completion = self.estimate_tokens(), -(-output_chars // _CHARS_PER_TOKEN)
        return Usage(prompt, completion, prompt + completion)


class ModelAnswer(msgspec.Struct, frozen=True):
    """How a model's stream ended, and what that took. What it said went to the sink.

    `cost_usd` is None where the price of the model that answered is not known.
    """

    finish_reason: str
    usage: Usage
    cost_usd: float | None = None


class ModelSink(Protocol):
    """Receives the model's output as it arrives: at most one text for each read of the socket, in order."""

    wait_for_capacity: Callable[[], Awaitable[None]]
    """Waits until more output can be taken. Called once for each read; a sink around another one uses the other's."""

    @abstractmethod
    def on_accepted(self) -> None:
        """The first valid chunk is here: the request was accepted."""
        ...

    @abstractmethod
    def on_text(self, text: str) -> None: ...
    @abstractmethod
    def on_reasoning(self, text: str) -> None: ...

    @abstractmethod
    def on_tool_call(self, call: ToolCall) -> None:
        """A call whose arguments are complete."""
        ...

    @abstractmethod
    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        """A call that the model's own server has made."""
        ...

    @abstractmethod
    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        """The model is asked again, or another is; with `discard`, what came so far no longer counts."""
        ...

    @abstractmethod
    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        """The call has failed or was cancelled, and has used this up all the same."""
        ...


class ModelInfo(msgspec.Struct, frozen=True):
    """A model on offer. Windows in tokens; prices in USD per million tokens.

    `tools`: it calls functions natively, else by a block in its text; `parallel_calls`: several in one step;
    `not_taken`: parameters that its server refuses.
    """

    id: str
    context_window: int
    max_output_tokens: int
    status: str = "unknown"
    owned_by: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    price_cached: float | None = None
    reasoning_efforts: tuple[str, ...] = ()
    tools: bool = True
    parallel_calls: bool = True
    strict_schema: bool = False
    not_taken: tuple[str, ...] = ()

    def calculate_cost(self, usage: Usage) -> float | None:
        """What the tokens cost in USD; None where no price is known."""
        if self.price_in is None or self.price_out is None:
            return None
        cached_price = self.price_in if self.price_cached is None else self.price_cached
        fresh = usage.prompt_tokens - usage.cached_tokens
        micro = fresh * self.price_in + usage.cached_tokens * cached_price + usage.completion_tokens * self.price_out
        return round(micro / 1_000_000, 9)


class Model(Protocol):
    """A model server."""

    @abstractmethod
    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """Stream one answer into `sink`. The answer's figures hold all that it took.

        Raises:
            ModelError: or a subclass, when the server refuses, breaks off or cannot be reached.
        """
        ...

    @abstractmethod
    async def check(self) -> str | None:
        """None when the model's server answers; else what is wrong with it, fit for the public."""
        ...


class Models(Protocol):
    """The catalogue."""

    @abstractmethod
    def resolve(self, model: str) -> tuple[ModelInfo, tuple[str, ...]]:
        """The model to use for a requested id, and warnings if that is another one.

        Raises:
            ModelNotFound: no such model, or it is retired and aliases are off.
        """
        ...

    @abstractmethod
    def adapt_parameters(
        self, parameters: Parameters, model: ModelInfo, *, drop: bool
    ) -> tuple[Parameters, tuple[str, ...]]:
        """The parameters as the model takes them, and a warning for each that was dropped.

        Raises:
            UnsupportedParameter: the model does not take one, or not this value, and `drop` is off.
        """
        ...

    @abstractmethod
    def list_models(self) -> list[ModelInfo]: ...
