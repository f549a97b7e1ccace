"""OpenAI's older completions format: a prompt and the text of the answer."""

from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, model_validator

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, Parameters, TurnRequest
from gateway.wire.openai_chat import GatewayOptions, StreamOptions
from gateway.wire.openai_chat_answers import ChunkWriter, build_completion
from gateway.wire.request_fields import Unsupported, make_unsupported, refuse_unsupported_field
from gateway.wire.tool_offer import ToolOffer
from gateway.wire.turn_summary import TurnSummary
from gateway_runtime.requests.model import ItemList, RequestModel

_OBJECT = "text_completion"
_ONE_ANSWER = Unsupported("one request gives one answer: send the request again for another", (1,))
_NO_PROBABILITIES = Unsupported("leave it out: answers have no probabilities", (0,))
_CHAT_ONLY = Unsupported("send the request to /v1/chat/completions")
_UNSUPPORTED = {
    **dict.fromkeys(("messages", "tools", "tool_choice", "response_format", "reasoning_effort"), _CHAT_ONLY),
    "max_completion_tokens": Unsupported("send max_tokens"),
    "n": _ONE_ANSWER,
    "best_of": _ONE_ANSWER,
    "logprobs": _NO_PROBABILITIES,
    "logit_bias": Unsupported("leave it out, or name the words in an instruction"),
    "suffix": Unsupported("leave it out: the answer follows the prompt"),
}


class CompletionRequest(RequestModel):
    """Request in OpenAI's older format: one prompt, as text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "What is 23*19?"}]})

    prompt: str | Annotated[ItemList[str], Field(min_length=1, max_length=1)]
    model: str | None = Field(default=None, min_length=1, max_length=200)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: str | Annotated[ItemList[str], Field(max_length=4)] | None = None
    seed: int | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    echo: bool | None = Field(default=None, description="The answer's text begins with the prompt.")
    user: str | None = Field(default=None, max_length=256)
    x_gateway: GatewayOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cast(JsonObject, data)
        for name in _UNSUPPORTED:
            refuse_unsupported_field(name, fields.get(name), _UNSUPPORTED)
        prompt: Any = fields.get("prompt")
        if isinstance(prompt, list) and prompt:
            items = cast(list[Any], prompt)
            if not isinstance(items[0], str):
                raise make_unsupported("prompt", "send it as text", "tokens are not supported")
            if len(items) > 1:
                raise make_unsupported("prompt", "send a request for each", "several prompts are not supported")
        return {n: v for n, v in fields.items() if n not in _UNSUPPORTED and (v not in (None, []) or n == "prompt")}

    @property
    def echoed_prompt(self) -> str:
        """Prompt that the answer repeats; empty if it does not."""
        return self._text if self.echo else ""

    @property
    def _text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def to_turn_request(self, offer: ToolOffer, *, idempotency_key: str | None = None) -> TurnRequest:
        """Convert to the request that all wire formats share."""
        options = self.x_gateway or GatewayOptions()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=stop or None,
            seed=self.seed,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
        )
        return TurnRequest(
            messages=(Message("user", self._text),),
            model=self.model or "",
            parameters=parameters,
            tools=offer.select(options.tool_selection, brings_tools=False),
            conversation_id=options.conversation_id,
            parent_turn_id=options.parent_turn_id,
            user_label=self.user,
            on_disconnect=options.on_disconnect or "cancel",
            idempotency_key=idempotency_key,
            approval=options.approval or "never",
            cache_ttl=options.cache.ttl if options.cache else None,
            webhook_url=options.webhook_url,
            code=options.code or "key",
            toolset=options.toolset,
        )


class TextChunkWriter(ChunkWriter):
    """Writes a turn's events as chunks of a `text_completion`.

    They are those of a chat completion, with the text alone. `prefix` comes before the answer.
    """

    def __init__(self, *, include_usage: bool = False, prefix: str = "") -> None:
        super().__init__(include_usage=include_usage, extended=False)
        self._prefix = prefix

    def write_event(self, event: e.Event) -> list[JsonObject]:
        if isinstance(event, e.TurnStarted) and self._prefix:
            (first,) = super().write_event(event)
            return [_to_text_chunk(first, self._prefix)]
        if isinstance(event, e.TurnCompleted):
            return super().write_event(event)  # `write_end` has converted the chunks
        return _convert_chunks(super().write_event(event))

    def write_end(self) -> list[JsonObject]:
        return _convert_chunks(super().write_end())


def _convert_chunks(chunks: list[JsonObject]) -> list[JsonObject]:
    converted: list[JsonObject] = []
    for chunk in chunks:
        choice = next(iter(chunk.get("choices") or ()), None)
        if choice is None:
            converted.append(chunk if "error" in chunk else _to_text_chunk(chunk, None))
        elif (text := _get_text(choice["delta"])) or choice["finish_reason"]:
            converted.append(_to_text_chunk(chunk, text))
    return converted


def build_text_completion(turn: TurnSummary, prefix: str = "") -> JsonObject:
    """Build the `text_completion` of a turn."""
    answer = build_completion(turn)
    (choice,) = answer["choices"]
    text = prefix + _get_text(choice["message"])
    return answer | _build_head(answer) | {"choices": [_build_choice(text, choice["finish_reason"])]}


def _to_text_chunk(chunk: JsonObject, text: str | None) -> JsonObject:
    if text is None:
        return chunk | _build_head(chunk)
    return chunk | _build_head(chunk) | {"choices": [_build_choice(text, chunk["choices"][0]["finish_reason"])]}


def _build_head(answer: JsonObject) -> JsonObject:
    return {"id": answer["id"].replace("chatcmpl-", "cmpl-"), "object": _OBJECT}


def _build_choice(text: str, finish_reason: str | None) -> JsonObject:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _get_text(message: JsonObject) -> str:
    """Return the text or refusal of a message or delta."""
    return message.get("content") or message.get("refusal") or ""
