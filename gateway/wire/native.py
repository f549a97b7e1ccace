"""The gateway's own wire format: every event of the turn, as it is."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, Parameters, ToolCall, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.sse import DONE, frame, unnumbered
from gateway.wire.turn_summary import TurnSummary

Text = Annotated[str, StringConstraints(max_length=1_000_000)]


class FunctionBody(BaseModel):
    name: str = Field(max_length=128)
    arguments: str = Field(default="{}", description="The arguments as the text of a JSON object.")


class ToolCallBody(BaseModel):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionBody


class MessageBody(BaseModel):
    """A chat message in OpenAI's shape."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | list[JsonObject] | None = Field(default=None, description="Text, or a list of content parts.")
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    name: str | None = Field(default=None, max_length=128)

    def to_message(self) -> Message:
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())
        return Message(self.role, self.content, calls, self.tool_call_id, self.name)


class ToolFunctionName(BaseModel):
    name: str


class NamedToolChoice(BaseModel):
    type: Literal["function"]
    function: ToolFunctionName


class CacheOptions(BaseModel):
    """An answer to the same request that is no older than `ttl` seconds is given again, else the new one is kept."""

    model_config = ConfigDict(extra="forbid")

    ttl: int = Field(ge=1, le=30 * 24 * 3600, description="In seconds.")


class ChatRequest(BaseModel):
    """One user request: what to answer, and how."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]},
    )

    messages: list[MessageBody] = Field(min_length=1, description="The new messages, oldest first.")
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: GROQ_DEFAULT_MODEL.")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, description="The most tokens of one step's answer.")
    stop: str | list[str] | None = Field(default=None, description="Up to four texts that end the answer.")
    seed: int | None = None
    response_format: JsonObject | None = Field(
        default=None, description="`json_object` or `json_schema`, as OpenAI has them. Goes with tools and streaming."
    )
    reasoning_effort: Literal["none", "default", "low", "medium", "high"] | None = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    drop_unsupported: bool = Field(
        default=False,
        description="Leave parameters out that the model does not take, with a warning, instead of a 422.",
    )
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    tools: list[str] | None = Field(default=None, max_length=128, description="Names that may be used. Default: all.")
    conversation_id: str | None = Field(default=None, description='An id, or "new". Default: a turn of its own.')
    parent_turn_id: UUID | None = Field(
        default=None, description="The turn to go on from, in the same conversation: a branch. Default: its last."
    )
    if_busy: Literal["wait", "reject"] = Field(
        default="wait", description="While another turn of the conversation runs: wait for its end, or answer 409."
    )
    system: Text | None = Field(default=None, description="Added to the gateway's system prompt.")
    user: str | None = Field(default=None, max_length=256, description="A label to find the turn by; no identity.")
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    approval: Literal["never", "destructive", "always"] = Field(
        default="never", description="Which tool calls a person must approve; the servers' own policy holds besides."
    )

    store: bool = Field(
        default=True, description="Without it no prompt, no text and no event is kept, only usage figures."
    )
    cache: CacheOptions | None = Field(
        default=None, description="Take the answer of an equal request of yours. Default: ask the model."
    )

    @model_validator(mode="after")
    def _nothing_to_converse(self) -> Self:
        if not self.store and self.conversation_id == "new":
            raise ValueError("store: a turn that is not kept cannot begin a conversation")
        if not self.store and self.cache is not None:
            raise ValueError("cache: the answer of a turn that is not kept cannot be given again")
        return self

    def to_turn_request(self, *, idempotency_key: str | None = None) -> TurnRequest:
        """The request in the gateway's own terms."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            self.temperature, self.top_p, self.max_tokens, stop or None, self.reasoning_effort, self.seed,
            self.parallel_tool_calls, self.top_k, self.repetition_penalty, self.frequency_penalty,
            self.presence_penalty, self.reasoning_format, self.include_reasoning,
        )  # fmt: skip
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
    """`outcome` is null while the call has none."""

    id: str
    server: str | None
    tool: str
    arguments: Any
    outcome: str | None = None
    content: list[JsonObject] = []
    duration_ms: float | None = None


class InputReport(BaseModel):
    """A question that the turn waits for; answer it with `POST /api/v1/turns/{id}/input`."""

    input_id: str
    call_id: str
    kind: str
    message: str
    schema_: JsonObject | None = Field(default=None, alias="schema", description="JSON schema of an accepting answer.")
    url: str | None = None
    expires_at: str | None = None


class UsageReport(BaseModel):
    """Times in seconds, as the model's server reported them."""

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
    """A whole turn, collected from its events."""

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
    cached: bool = Field(default=False, description="The answer is an earlier one's, given again.")
    steps: int = 0
    duration_ms: float | None = None
    warnings: list[str] = []


def response_of(turn: TurnSummary) -> ChatResponse:
    """The answer; the turn must have completed, or wait for a person."""
    assert turn.started is not None
    end = turn.end if isinstance(turn.end, e.TurnCompleted) else None
    return ChatResponse(
        turn_id=turn.started.turn_id,
        conversation_id=turn.started.conversation_id,
        model=turn.started.model,
        response=turn.response,
        reasoning=turn.reasoning,
        tool_calls=[ToolCallReport.model_validate(call, from_attributes=True) for call in turn.calls.values()],
        inputs=[InputReport.model_validate(asked, from_attributes=True) for asked in turn.inputs.values()],
        finish_reason=turn.finish_reason,
        usage=UsageReport.model_validate(turn.usage, from_attributes=True),
        cost_usd=end.cost_usd if end else None,
        cached=end.cached if end else False,
        steps=turn.steps,
        duration_ms=end.duration_ms if end else None,
        warnings=list(turn.started.warnings),
    )


async def stream(turn_id: str, listener: EventListener) -> AsyncGenerator[bytes]:
    """The turn's events as SSE bytes, all of a batch in one piece, `[DONE]` behind the last.

    Where the events stop before the turn's end, the un-numbered `stream.closing` says why.
    A reader that had the last event already gets `[DONE]` alone.
    """
    ended = False
    async for batch in listener:
        ended = isinstance(batch[-1].event, e.TurnEnd)
        yield b"".join(map(frame, batch)) + (DONE if ended else b"")
    if not ended:
        reason = listener.close_reason
        farewell = unnumbered("stream.closing", msgspec.json.encode({"turn_id": turn_id, "reason": reason}))
        yield farewell if reason else DONE
