"""The native wire format.

It has chat requests, and every event of a turn unchanged.
"""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Self
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, Parameters, ToolCall, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.request_model import ItemList, RequestModel
from gateway.wire.sse import DONE, format_event, format_unnumbered_event
from gateway.wire.turn_summary import TurnSummary

MessageText = Annotated[str, StringConstraints(max_length=1_000_000)]


class NativeFunctionCall(BaseModel):
    """Function that a tool call names, with its arguments."""

    name: str = Field(max_length=128)
    arguments: str = Field(default="{}", description="Arguments, a JSON object as text.")


class NativeToolCall(BaseModel):
    """Tool call of an earlier answer.

    The model's server may need its `extra_content`.
    """

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: NativeFunctionCall
    extra_content: object = None

    def to_tool_call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments, extra_content=self.extra_content)


class NativeMessage(RequestModel):
    """Chat message in the shape of OpenAI's API."""

    role: Literal["system", "user", "assistant", "tool"]
    content: MessageText | ItemList[JsonObject] | None = Field(
        default=None, description="Text, or a list of content parts."
    )
    tool_calls: ItemList[NativeToolCall] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    name: str | None = Field(default=None, max_length=128)

    def to_message(self) -> Message:
        calls = tuple(call.to_tool_call() for call in self.tool_calls or ())
        return Message(self.role, self.content, calls, self.tool_call_id, self.name)


class ToolFunctionName(BaseModel):
    """Name of a tool."""

    name: str


class NamedToolChoice(BaseModel):
    """Choice of a tool that the model must call."""

    type: Literal["function"]
    function: ToolFunctionName


class CacheOptions(RequestModel):
    """Options of the response cache.

    The stored answer to an equal request is returned if it is at most `ttl` seconds old.
    """

    ttl: int = Field(ge=1, le=30 * 24 * 3600, description="Maximum age in seconds.")


class ChatRequest(RequestModel):
    """A user request with its options."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]},
    )

    messages: ItemList[NativeMessage] = Field(min_length=1, description="New messages, oldest first.")
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: GROQ_DEFAULT_MODEL.")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, description="Maximum tokens that the model generates in one step.")
    stop: str | ItemList[str] | None = Field(default=None, description="Up to four texts at which generation stops.")
    seed: int | None = None
    response_format: JsonObject | None = Field(
        default=None,
        description="`json_object` or `json_schema`, as in OpenAI's API. Works with tools and with streaming.",
    )
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    drop_unsupported: bool = Field(
        default=False,
        description="Drop parameters that the model does not support, with a warning, instead of answering 422.",
    )
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    tools: ItemList[str] | None = Field(
        default=None, max_length=128, description="Names of the allowed tools. Default: all."
    )
    conversation_id: str | None = Field(default=None, description='An id, or "new". Default: no conversation.')
    parent_turn_id: UUID | None = Field(
        default=None,
        description="Turn of the same conversation that this turn follows, which creates a branch. Default: the last.",
    )
    if_busy: Literal["wait", "reject"] = Field(
        default="wait",
        description="While another turn of the conversation is active: wait for at most two minutes, or answer 409. "
        "Waiting requests run in the order of their arrival.",
    )
    system: MessageText | None = Field(default=None, description="Added to the gateway's system prompt.")
    user: str | None = Field(default=None, max_length=256, description="Label to find the turn by; not an identity.")
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    approval: Literal["never", "destructive", "always"] = Field(
        default="never",
        description="Tool calls that a person must approve. The policy of each MCP server applies as well.",
    )

    store: bool = Field(
        default=True, description="If false, only usage figures are stored: no prompt, no text and no events."
    )
    cache: CacheOptions | None = Field(
        default=None, description="Reuse the answer to an equal request of the same user. Default: call the model."
    )

    @model_validator(mode="after")
    def _validate_storage_options(self) -> Self:
        if not self.store and self.conversation_id == "new":
            raise ValueError("store: a turn that is not stored cannot start a conversation")
        if not self.store and self.cache is not None:
            raise ValueError("cache: the answer of a turn that is not stored cannot be cached")
        return self

    def to_turn_request(self, *, idempotency_key: str | None = None) -> TurnRequest:
        """Convert to the request that all wire formats share."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=stop or None,
            reasoning_effort=self.reasoning_effort,
            seed=self.seed,
            parallel_tool_calls=self.parallel_tool_calls,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            reasoning_format=self.reasoning_format,
            include_reasoning=self.include_reasoning,
        )
        choice = self.tool_choice
        return TurnRequest(
            messages=tuple(message.to_message() for message in self.messages),
            model=self.model or "",
            parameters=parameters,
            tools=None if self.tools is None else tuple(dict.fromkeys(self.tools)),
            tool_choice=choice.model_dump() if isinstance(choice, NamedToolChoice) else choice,
            conversation_id=self.conversation_id,
            system=self.system,
            user_label=self.user,
            on_disconnect=self.on_disconnect,
            idempotency_key=idempotency_key,
            approval=self.approval,
            store=self.store,
            drop_unsupported=self.drop_unsupported,
            cache_ttl=self.cache.ttl if self.cache else None,
            parent_turn_id=self.parent_turn_id,
            response_format=None if (self.response_format or {}).get("type") == "text" else self.response_format,
        )


class ToolCallReport(BaseModel):
    """Tool call of a turn.

    `outcome` is null until the call has ended.
    """

    id: str
    server: str | None
    tool: str
    arguments: object
    outcome: str | None = None
    content: list[JsonObject] = []
    duration_ms: float | None = None


class InputReport(BaseModel):
    """Question that the turn waits for; answer it with `POST /api/v1/turns/{id}/input`."""

    input_id: str
    call_id: str
    kind: str
    message: str
    schema_: JsonObject | None = Field(
        default=None, alias="schema", description="JSON schema of the content of an accepting answer."
    )
    url: str | None = None
    expires_at: str | None = None


class UsageReport(BaseModel):
    """Token counts, and times in seconds as the model's server reported them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_time: float = 0.0
    model_time: float = 0.0
    generation_time: float = 0.0
    tokens_per_second: float | None = None


class ChatResponse(BaseModel):
    """Complete turn, collected from its events."""

    turn_id: str
    conversation_id: str | None
    model: str
    response: str
    reasoning: str | None = None
    tool_calls: list[ToolCallReport] = []
    inputs: list[InputReport] = []
    finish_reason: str | None = None
    usage: UsageReport = UsageReport()
    cost_usd: float | None = None
    cached: bool = Field(default=False, description="The answer came from the response cache.")
    steps: int = 0
    duration_ms: float | None = None
    warnings: list[str] = []


def build_chat_response(turn: TurnSummary) -> ChatResponse:
    """Build the answer of a completed or waiting turn."""
    assert turn.started is not None
    end = turn.end if isinstance(turn.end, e.TurnCompleted) else None
    return ChatResponse(
        turn_id=turn.started.turn_id,
        conversation_id=turn.started.conversation_id,
        model=turn.started.model,
        response=turn.response,
        reasoning=turn.reasoning,
        tool_calls=[ToolCallReport.model_validate(call, from_attributes=True) for call in turn.calls.values()],
        inputs=[InputReport.model_validate(question, from_attributes=True) for question in turn.inputs.values()],
        finish_reason=turn.finish_reason,
        usage=UsageReport.model_validate(turn.usage, from_attributes=True),
        cost_usd=end.cost_usd if end else None,
        cached=end.cached if end else False,
        steps=turn.steps,
        duration_ms=end.duration_ms if end else None,
        warnings=turn.warnings,
    )


async def stream_events(turn_id: str, listener: EventListener) -> AsyncGenerator[bytes]:
    """Stream the turn's events as SSE, then `[DONE]`.

    Each batch is one chunk. If the events stop before the turn ends, the last frame is `stream.closing`, which has no
    number and names the reason. A client that already had the last event receives only `[DONE]`.
    """
    has_ended = False
    async for batch in listener:
        has_ended = isinstance(batch[-1].event, e.TurnEnd)
        yield b"".join(map(format_event, batch)) + (DONE if has_ended else b"")
    if not has_ended:
        reason = listener.close_reason
        closing = format_unnumbered_event("stream.closing", msgspec.json.encode({"turn_id": turn_id, "reason": reason}))
        yield closing if reason else DONE
