"""Wire format of OpenAI's chat completions.

The gateway's own fields are in `x_gateway`.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Literal, assert_never
from uuid import UUID

import msgspec
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo, error_from_info
from gateway.domain.messages import (
    Approval,
    JsonObject,
    Message,
    Parameters,
    Role,
    ToolCall,
    ToolSpec,
    TurnRequest,
    Usage,
)
from gateway.ports.listener import EventListener
from gateway.wire.native import CacheOptions
from gateway.wire.request_model import ItemList, RequestModel, limit_entries
from gateway.wire.sse import DONE
from gateway.wire.turn_summary import ToolCallSummary, TurnSummary

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "step_limit": "length",
    "token_limit": "length",
    "input_required": "stop",
    "content_filter": "content_filter",
}
_encode = msgspec.json.Encoder().encode
_encode_arguments = msgspec.json.Encoder(order="sorted").encode


class FunctionCallBody(RequestModel):
    """Function that a tool call names, with its arguments as JSON text."""

    name: str = Field(max_length=128)
    arguments: str = "{}"


class ToolCallBody(BaseModel):
    """Tool call of an earlier answer. Additional fields are ignored."""

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCallBody


class MessageBody(RequestModel):
    """Message of a conversation. All fields of an answer's message are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | ItemList[JsonObject] | None = None
    name: str | None = Field(default=None, max_length=128)
    tool_calls: ItemList[ToolCallBody] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    refusal: object = None
    annotations: object = None
    audio: object = None
    function_call: None = None
    reasoning: object = None
    reasoning_content: object = None
    executed_tools: object = None

    @model_validator(mode="after")
    def _validate_content(self) -> "MessageBody":
        if self.content is None and not self.tool_calls:
            raise ValueError("content: must not be null")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: required for the role tool")
        return self

    def to_message(self) -> Message:
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, self.content, calls, self.tool_call_id, self.name)


class FunctionBody(RequestModel):
    """Definition of a client tool. `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = Field(default=None, max_length=8_192)
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolBody(RequestModel):
    """Tool that the client runs."""

    type: Literal["function"]
    function: FunctionBody

    def to_tool_spec(self) -> ToolSpec:
        function = self.function
        return build_client_tool(function.name, function.description, function.parameters)


class NamedFunction(RequestModel):
    """Name of a tool."""

    name: str


class NamedChoice(RequestModel):
    """Choice of a tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(RequestModel):
    """Options of a stream. `include_obfuscation` is ignored."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class GatewayOptions(RequestModel):
    """Options of the gateway, beyond OpenAI's format."""

    tools: Literal["all", "none"] | ItemList[str] = Field(default="all", description="Gateway tools that may be used.")
    conversation_id: str | None = Field(default=None, description='An id, or "new". Default: no conversation.')
    parent_turn_id: UUID | None = Field(
        default=None,
        description="Turn of the same conversation that this turn follows, which creates a branch. Default: the last.",
    )
    approval: Approval = Field(
        default="never",
        description="Tool calls that a person must approve. The policy of each MCP server applies as well.",
    )
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    cache: CacheOptions | None = None


class ChatCompletionRequest(RequestModel):
    """Request in OpenAI's format.

    Some fields are accepted and ignored, for example `service_tier`.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]},
    )

    messages: ItemList[MessageBody] = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    stop: str | Annotated[ItemList[str], Field(max_length=4)] | None = None
    seed: int | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=0, le=2)
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high"] | None = None
    tools: ItemList[ToolBody] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None
    user: str | None = Field(default=None, max_length=256)
    metadata: Annotated[dict[str, str], Field(max_length=16), limit_entries(16)] | None = None
    store: bool | None = Field(default=None, description="If false, no text is stored.")
    x_gateway: GatewayOptions = GatewayOptions()
    n: Literal[1] | None = Field(default=None, description="Only one choice is supported.")
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0), limit_entries(0)] | None = None
    modalities: ItemList[Literal["text"]] | None = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None
    verbosity: object = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="after")
    def _validate_storage_options(self) -> "ChatCompletionRequest":
        if self.store is False and self.x_gateway.cache is not None:
            raise ValueError("x_gateway.cache: the answer of a turn that is not stored cannot be cached")
        return self

    def to_turn_request(self, *, tools: str | None = None, idempotency_key: str | None = None) -> TurnRequest:
        """Convert to the request that all wire formats share.

        `tools` is the header X-Gateway-Tools, which overrides the body.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=stop or None,
            reasoning_effort="low" if self.reasoning_effort == "minimal" else self.reasoning_effort,
            seed=self.seed,
            parallel_tool_calls=self.parallel_tool_calls,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            reasoning_format=self.reasoning_format,
            include_reasoning=self.include_reasoning,
        )
        choice, options = self.tool_choice, self.x_gateway
        return TurnRequest(
            messages=tuple(message.to_message() for message in self.messages),
            model=self.model or "",
            parameters=parameters,
            tools=parse_tool_selection(tools if tools is not None else options.tools),
            tool_choice=choice.model_dump() if isinstance(choice, NamedChoice) else choice,
            conversation_id=options.conversation_id,
            parent_turn_id=options.parent_turn_id,
            user_label=self.user,
            on_disconnect=options.on_disconnect,
            idempotency_key=idempotency_key,
            approval=options.approval,
            cache_ttl=options.cache.ttl if options.cache else None,
            store=self.store is not False,
            client_tools=tuple(tool.to_tool_spec() for tool in self.tools or ()),
            response_format=None if (self.response_format or {}).get("type") == "text" else self.response_format,
            metadata=self.metadata or {},
        )


def build_client_tool(name: str, description: str | None, parameters: JsonObject | None) -> ToolSpec:
    """Build the specification of a client tool."""
    schema = parameters or {"type": "object", "properties": {}}
    return ToolSpec(name, "", name, description or name, schema, client=True)


def parse_tool_selection(selection: str | list[str]) -> tuple[str, ...] | None:
    """Return the names of the allowed gateway tools; None: all."""
    if isinstance(selection, str):
        if selection.strip().lower() == "all":
            return None
        selection = [] if selection.strip().lower() == "none" else [name.strip() for name in selection.split(",")]
    return tuple(dict.fromkeys(name for name in selection if name))


# --- answers


def build_completion(turn: TurnSummary) -> JsonObject:
    """Build the `chat.completion` of a turn."""
    assert turn.started is not None
    message: JsonObject = {"role": "assistant", "content": "\n\n".join(turn.step_texts) or None, "refusal": None}
    if turn.reasoning:
        message["reasoning"] = turn.reasoning
    if turn.client_calls:
        message["tool_calls"] = [_build_client_call(call) for call in turn.client_calls]
    elif message["content"] is None:
        message["content"] = ""
    reason = _FINISH_REASONS.get(turn.finish_reason or "", "stop")
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    head = build_chunk_header(turn.started.turn_id, turn.started.model, "chat.completion")
    return head | {"choices": [choice], "usage": build_usage(turn.usage), "x_gateway": build_gateway_fields(turn)}


def build_gateway_fields(turn: TurnSummary) -> JsonObject:
    """Build `x_gateway`: data of the turn beyond OpenAI's format."""
    assert turn.started is not None
    end = turn.end if isinstance(turn.end, e.TurnCompleted) else None
    fields: JsonObject = {
        "turn_id": turn.started.turn_id,
        "conversation_id": turn.started.conversation_id,
        "finish_reason": turn.finish_reason,
        "steps": turn.steps,
        "cost_usd": end.cost_usd if end else None,
        "cached": True if end and end.cached else None,
        "tool_calls": [_describe_tool_call(call) for call in turn.calls.values() if not call.client],
        "inputs": [msgspec.to_builtins(question) for question in turn.inputs.values()],
        "warnings": list(turn.started.warnings),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def _describe_tool_call(call: ToolCallSummary) -> JsonObject:
    return {
        "id": call.id,
        "server": call.server,
        "tool": call.tool,
        "arguments": call.arguments,
        "outcome": call.outcome,
        "content": call.content,
        "duration_ms": call.duration_ms,
    }


def _build_client_call(call: ToolCallSummary) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.tool, "arguments": format_arguments(call)}}


def format_arguments(call: ToolCallSummary | e.ToolCallStarted) -> str:
    """Return a call's arguments as JSON text."""
    return call.arguments if isinstance(call.arguments, str) else _encode_arguments(call.arguments).decode()


def build_usage(usage: Usage) -> JsonObject:
    """Build the `usage` of an answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def build_chunk_header(turn_id: str, model: str, kind: str) -> JsonObject:
    """Build the fields that all chunks of an answer share."""
    turn = UUID(turn_id)
    return {"id": f"chatcmpl-{turn.hex}", "object": kind, "created": get_created_at(turn), "model": model}


def get_created_at(turn_id: UUID) -> int:
    """Return the Unix time in a turn's UUID of version 7."""
    return (turn_id.int >> 80) // 1000


def build_error_body(error: ErrorInfo, status: int | None = None) -> JsonObject:
    """Build an error body in OpenAI's shape."""
    status = error_from_info(error).status if status is None else status
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    error_type = types.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": error.message, "type": error_type, "param": error.param, "code": error.code}}


class ChunkWriter:
    """Writes a turn's events as `chat.completion.chunk` objects.

    `extended` adds reasoning and `x_gateway`.
    """

    def __init__(self, *, include_usage: bool = False, extended: bool = True) -> None:
        self._include_usage = include_usage
        self._extended = extended
        self._turn = TurnSummary()
        self._head: JsonObject = {}
        self._last_step = 0
        self._client_calls = 0

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return the chunks of an event.

        The list is empty for most gateway events.
        """
        self._turn.apply(event)
        match event:
            case e.TurnStarted():
                self._head = build_chunk_header(event.turn_id, event.model, "chat.completion.chunk")
                return [self._build_chunk({"role": "assistant", "content": ""})]
            case e.TextDelta():
                separator = "\n\n" if self._last_step not in (0, event.step) else ""
                self._last_step = event.step
                return [self._build_chunk({"content": separator + event.text})]
            case e.ReasoningDelta():
                return [self._build_chunk({"reasoning": event.text})] if self._extended else []
            case e.ToolCallStarted() if event.client:
                function = {"name": event.tool, "arguments": format_arguments(event)}
                call = {"index": self._client_calls, "id": event.call_id, "type": "function", "function": function}
                self._client_calls += 1
                return [self._build_chunk({"tool_calls": [call]})]
            case e.ToolCallStarted() | e.ToolFinished() | e.InputRequired() | e.ModelRetry():
                if not self._extended:
                    return []
                return [self._build_chunk({}) | {"x_gateway": {"event": msgspec.to_builtins(event)}}]
            case e.TurnCompleted():
                return self.write_end()
            case e.TurnFailed() | e.TurnCancelled():
                return [build_error_body(event.error)]
            case e.ToolProgress() | e.ToolLog() | e.InputResolved() | e.TurnResumed() | e.StepCompleted():
                return []
            case _:
                assert_never(event)

    def write_end(self) -> list[JsonObject]:
        """Return the last chunks of the answer."""
        last = self._build_chunk({}, _FINISH_REASONS.get(self._turn.finish_reason or "", "stop"))
        if self._extended:
            last["x_gateway"] = build_gateway_fields(self._turn)
        if not self._include_usage:
            return [last]
        return [last, self._head | {"choices": [], "usage": build_usage(self._turn.usage)}]

    @property
    def has_failed(self) -> bool:
        return isinstance(self._turn.end, e.TurnFailed | e.TurnCancelled)

    def _build_chunk(self, delta: JsonObject, finish_reason: FinishReason | None = None) -> JsonObject:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head | {"choices": [choice]}


def format_sse_chunk(chunk: JsonObject) -> bytes:
    """Format a chunk as a server-sent event."""
    return b"data: %s\n\n" % _encode(chunk)


def format_json_line(chunk: JsonObject) -> bytes:
    """Format a chunk as a line of JSON."""
    return _encode(chunk) + b"\n"


async def stream_chunks(
    listener: EventListener,
    *,
    chunks: ChunkWriter,
    frame: Callable[[JsonObject], bytes] = format_sse_chunk,
    done: bytes = DONE,
) -> AsyncGenerator[bytes]:
    """Stream a turn as framed chunks, followed by `done` unless it failed."""
    has_ended = False
    async for batch in listener:
        has_ended = isinstance(batch[-1].event, e.TurnEnd)
        frames = b"".join(frame(chunk) for entry in batch for chunk in chunks.write_event(entry.event))
        yield frames + (done if has_ended and not chunks.has_failed else b"")
    if not has_ended:
        reason = listener.close_reason or "server_stopping"
        if reason == "input_required":
            yield b"".join(map(frame, chunks.write_end())) + done
        else:
            yield frame(
                build_error_body(ErrorInfo(code=reason, message=f"The stream ended before the answer: {reason}."))
            )
