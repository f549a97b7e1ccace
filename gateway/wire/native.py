"""The native wire format.

It has chat requests, and every event of a turn unchanged.
"""

from collections.abc import AsyncGenerator, Collection
from typing import Annotated, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, ToolCall, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.sse import DONE, format_event, format_unnumbered_event
from gateway.wire.turn_fields import SystemText, TurnFields
from gateway.wire.turn_summary import TurnSummary
from gateway_runtime.requests.model import ItemList, RequestModel

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

    model_config = ConfigDict(extra="ignore")  # `FieldReader` reports further fields

    role: Literal["system", "user", "assistant", "tool"] = Field(description="`developer` is the same as `system`.")
    content: MessageText | ItemList[JsonObject] | None = Field(
        default=None, description="Text, or a list of content parts."
    )
    tool_calls: ItemList[NativeToolCall] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    name: str | None = Field(default=None, max_length=128)
    refusal: str | None = None

    @model_validator(mode="after")
    def _validate_content(self) -> Self:
        if self.content is None and not self.tool_calls and not self.refusal:
            raise ValueError("content: must not be null")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: required for the role tool")
        return self

    def to_message(self) -> Message:
        calls = tuple(call.to_tool_call() for call in self.tool_calls or ())
        return Message(self.role, self.content, calls, self.tool_call_id, self.name, self.refusal or None)


class ChatRequest(TurnFields):
    """A user request with its options."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]}
    )
    returns_client_calls = True

    messages: ItemList[NativeMessage] = Field(min_length=1, description="New messages, oldest first.")
    system: SystemText = None

    def to_turn_request(self, *, gateway_tools: Collection[str] = ()) -> TurnRequest:
        """Convert to the request that all wire formats share."""
        messages = tuple(message.to_message() for message in self.messages)
        return self.build_turn_request(messages, system=self.system, gateway_tools=gateway_tools)


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
    source: str | None = Field(
        default=None,
        description="Where the result comes from if the tool was not called: `recorded`, `replaced` or `not_run`.",
    )
    parent_call_id: str | None = Field(default=None, description="Id of the program that made the call.")


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


class OriginReport(BaseModel):
    """Origin of a fork or replay, and the last step taken over."""

    kind: str
    turn_id: str
    after_step: int


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
    origin: OriginReport | None = Field(default=None, description="Set in forks and replays.")


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
        origin=OriginReport.model_validate(turn.started.origin, from_attributes=True) if turn.started.origin else None,
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
