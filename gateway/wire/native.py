"""The gateway's own wire format: every event of the turn, as it is."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated, Any, Literal, Self, assert_never

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway import events as e
from gateway.messages import JsonObject, Message, Parameters, ToolCall, TurnRequest
from gateway.wire.sse import DONE, frame, unnumbered

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

    def value(self) -> Message:
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())
        return Message(self.role, self.content, calls, self.tool_call_id, self.name)


class ToolFunctionName(BaseModel):
    name: str


class NamedToolChoice(BaseModel):
    type: Literal["function"]
    function: ToolFunctionName


class ChatRequest(BaseModel):
    """One user request: what to answer, and how."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]},
    )

    messages: list[MessageBody] = Field(min_length=1, description="The new messages, oldest first.")
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: GROQ_DEFAULT_MODEL.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, description="The most tokens of one step's answer.")
    stop: str | list[str] | None = Field(default=None, description="Up to four texts that end the answer.")
    reasoning_effort: Literal["none", "default", "low", "medium", "high"] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    tools: list[str] | None = Field(default=None, max_length=128, description="Names that may be used. Default: all.")
    conversation_id: str | None = Field(default=None, description='An id, or "new". Default: a turn of its own.')
    system: Text | None = Field(default=None, description="Added to the gateway's system prompt.")
    user: str | None = Field(default=None, max_length=256, description="A label to find the turn by; no identity.")
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    approval: Literal["never", "destructive", "always"] = Field(
        default="never", description="Which tool calls a person must approve; the servers' own policy holds besides."
    )

    store: bool = Field(
        default=True, description="Without it no prompt, no text and no event is kept, only usage figures."
    )

    @model_validator(mode="after")
    def _nothing_to_converse(self) -> Self:
        if not self.store and self.conversation_id == "new":
            raise ValueError("store: a turn that is not kept cannot begin a conversation")
        return self

    def value(self, *, default_model: str, defaults: Parameters, idempotency_key: str | None = None) -> TurnRequest:
        """The request in the gateway's own terms, with the defaults where it says nothing."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        asked = Parameters(self.temperature, self.top_p, self.max_tokens, stop or None, self.reasoning_effort)
        choice = self.tool_choice
        return TurnRequest(
            messages=tuple(message.value() for message in self.messages),
            model=self.model or default_model,
            parameters=asked.over(defaults),
            tools=None if self.tools is None else tuple(dict.fromkeys(self.tools)),
            tool_choice=choice.model_dump() if isinstance(choice, NamedToolChoice) else choice,
            conversation_id=self.conversation_id,
            system=self.system,
            user_label=self.user,
            on_disconnect=self.on_disconnect,
            idempotency_key=idempotency_key,
            approval=self.approval,
            store=self.store,
        )


class ToolCallReport(BaseModel):
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
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


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
    steps: int = 0
    duration_ms: float | None = None
    warnings: list[str] = []


async def stream(
    turn_id: str, batches: AsyncIterator[list[e.Entry]], closing: Callable[[], str | None]
) -> AsyncGenerator[bytes]:
    """The turn's events as SSE bytes, all of a batch in one piece, `[DONE]` behind the last.

    Where the batches end before the turn does, `closing()` says why, and the un-numbered `stream.closing` tells it.
    A reader that had the last event already gets `[DONE]` alone.
    """
    ended = False
    async for batch in batches:
        ended = isinstance(batch[-1].event, e.TurnEnd)
        yield b"".join(map(frame, batch)) + (DONE if ended else b"")
    if not ended:
        reason = closing()
        farewell = unnumbered("stream.closing", msgspec.json.encode({"turn_id": turn_id, "reason": reason}))
        yield farewell if reason else DONE


class Collector:
    """Folds events into the answer of the non-streaming endpoint."""

    def __init__(self) -> None:
        self.end: e.TurnEnd | None = None
        self._started: e.TurnStarted | None = None
        self._text: dict[int, list[str]] = {}
        self._reasoning: dict[int, list[str]] = {}
        self._calls: dict[str, ToolCallReport] = {}
        self._inputs: dict[str, InputReport] = {}

    @property
    def waits(self) -> bool:
        """Whether the turn waits for a person."""
        return self.end is None and bool(self._inputs)

    def take(self, event: e.Event) -> None:
        match event:
            case e.TurnStarted():
                self._started = event
            case e.TextDelta():
                self._text.setdefault(event.step, []).append(event.text)
            case e.ReasoningDelta():
                self._reasoning.setdefault(event.step, []).append(event.text)
            case e.ToolCallStarted():
                self._calls[event.call_id] = ToolCallReport(
                    id=event.call_id, server=event.server, tool=event.tool, arguments=event.arguments
                )
            case e.ToolFinished():
                call = self._calls[event.call_id]
                call.outcome, call.content, call.duration_ms = event.outcome, event.content, event.duration_ms
            case e.ModelRetry():
                if event.discard:
                    self._text.pop(event.step, None)
                    self._reasoning.pop(event.step, None)
            case e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled():
                self.end = event
            case e.InputRequired():
                self._inputs[event.input_id] = InputReport.model_validate(event, from_attributes=True)
            case e.InputResolved():
                self._inputs.pop(event.input_id, None)
            case e.ToolProgress() | e.ToolLog() | e.StepCompleted():
                pass
            case _:
                assert_never(event)

    def response(self) -> ChatResponse:
        """The answer; the turn must have completed, or wait for a person."""
        assert self._started is not None
        end = self.end if isinstance(self.end, e.TurnCompleted) else None
        usage: JsonObject = msgspec.to_builtins(end.usage) if end else {}
        texts = ["".join(parts) for _, parts in sorted(self._text.items())]
        return ChatResponse(
            turn_id=self._started.turn_id,
            conversation_id=self._started.conversation_id,
            model=self._started.model,
            response=next((text for text in reversed(texts) if text), ""),
            reasoning="\n".join("".join(parts) for _, parts in sorted(self._reasoning.items())) or None,
            tool_calls=list(self._calls.values()),
            inputs=list(self._inputs.values()),
            finish_reason=end.finish_reason if end else "input_required",
            usage=UsageReport.model_validate(usage),
            cost_usd=end.cost_usd if end else None,
            steps=end.steps if end else len(self._text),
            duration_ms=end.duration_ms if end else None,
            warnings=list(self._started.warnings),
        )
