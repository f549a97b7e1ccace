"""Answers in OpenAI's chat completions format, whole and in chunks.

The gateway's own fields are in `x_gateway`.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Literal, NamedTuple, assert_never
from uuid import UUID

import msgspec

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo, error_from_info
from gateway.domain.messages import JsonObject, Usage
from gateway.ports.listener import EventListener
from gateway.wire.openai.error_codes import get_openai_code
from gateway.wire.sse import DONE
from gateway.wire.turn_summary import ToolCallSummary, TurnSummary

FinishReason = Literal["stop", "length", "tool_calls", "function_call", "content_filter"]
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "step_limit": "length",
    "token_limit": "length",
    "input_required": "stop",
    "content_filter": "content_filter",
}
_DISCARDED_STEP = -1
_encode = msgspec.json.Encoder().encode
_encode_arguments = msgspec.json.Encoder(order="sorted").encode


class ChatDialect(NamedTuple):
    """Client's variant of the format.

    `groq`: answers have `x_groq`, and streams the usage in it. `functions`: a call is a `function_call`.
    """

    groq: bool = False
    functions: bool = False

    @property
    def service_tier(self) -> str:
        return "on_demand" if self.groq else "default"


OPENAI_DIALECT = ChatDialect()


def build_completion(turn: TurnSummary, dialect: ChatDialect = OPENAI_DIALECT) -> JsonObject:
    """Build the `chat.completion` of a turn."""
    assert turn.started is not None
    message: JsonObject = {
        "role": "assistant",
        "content": "\n\n".join(turn.step_texts) or None,
        "refusal": turn.refusal,
    }
    if (reasoning := turn.shown_reasoning) is not None:
        message["reasoning"] = reasoning
    if turn.client_calls and dialect.functions:
        message["function_call"] = _build_function(turn.client_calls[0])
    if len(turn.client_calls) > dialect.functions:
        message["tool_calls"] = [_build_client_call(call) for call in turn.client_calls]
    if not turn.client_calls and message["content"] is None and turn.refusal is None:
        message["content"] = ""
    reason = _get_finish_reason(turn, dialect)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    head = build_chunk_header(turn.started.turn_id, turn.started.model, "chat.completion")
    fields: JsonObject = {"choices": [choice], "usage": build_usage(turn.usage), "service_tier": dialect.service_tier}
    if dialect.groq:
        fields["x_groq"] = {"id": _build_groq_id(turn.started.turn_id)}
    return head | fields | {"x_gateway": build_gateway_fields(turn)}


def _get_finish_reason(turn: TurnSummary, dialect: ChatDialect) -> FinishReason:
    reason = _FINISH_REASONS.get(turn.finish_reason or "", "stop")
    return "function_call" if dialect.functions and reason == "tool_calls" else reason


def _build_groq_id(turn_id: str) -> str:
    return f"req_{UUID(turn_id).hex}"


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
        "warnings": turn.warnings,
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
    body: JsonObject = {"id": call.id, "type": "function", "function": _build_function(call)}
    return body if call.extra_content is None else body | {"extra_content": call.extra_content}


def _build_function(call: ToolCallSummary) -> JsonObject:
    return {"name": call.tool, "arguments": format_arguments(call)}


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


def build_error_body(error: ErrorInfo, status: int | None = None, *, openai_code: str | None = None) -> JsonObject:
    """Build an error body in OpenAI's shape and with its codes.

    `x_gateway.code` is the gateway's own code, where that is another one.
    """
    status = error_from_info(error).status if status is None else status
    code = openai_code or get_openai_code(error.code)
    types = {401: "authentication_error", 402: code, 403: "permission_error", 429: "rate_limit_error"}
    error_type = types.get(status, "invalid_request_error" if status < 500 else "server_error")
    detail: JsonObject = {"message": error.message, "type": error_type, "param": error.param, "code": code}
    return {"error": detail if code == error.code else detail | {"x_gateway": {"code": error.code}}}


class ChunkWriter:
    """Writes a turn's events as `chat.completion.chunk` objects.

    `extended` adds reasoning and `x_gateway`. The first chunk and the last have the service tier.
    """

    def __init__(
        self, *, include_usage: bool = False, extended: bool = True, dialect: ChatDialect = OPENAI_DIALECT
    ) -> None:
        self._include_usage = include_usage
        self._extended = extended
        self._dialect = dialect
        self._turn = TurnSummary()
        self._head: JsonObject = {}
        self._last_step = self._last_refused_step = self._last_reasoned_step = 0
        self._client_calls = 0

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return the chunks of an event.

        The list is empty for most gateway events.
        """
        self._turn.apply(event)
        match event:
            case e.TurnStarted():
                self._head = build_chunk_header(event.turn_id, event.model, "chat.completion.chunk")
                return [self._build_chunk({"role": "assistant", "content": ""}) | self._build_service_fields()]
            case e.TextDelta() if event.refusal is True:
                separator = "\n\n" if self._last_refused_step not in (0, event.step) else ""
                self._last_refused_step = event.step
                return [self._build_chunk({"refusal": separator + event.text})]
            case e.TextDelta():
                separator = "\n\n" if self._last_step not in (0, event.step) else ""
                self._last_step = event.step
                return [self._build_chunk({"content": separator + event.text})]
            case e.ReasoningDelta():
                separator = "\n" if self._last_reasoned_step not in (0, event.step) else ""
                self._last_reasoned_step = event.step
                return [self._build_chunk({"reasoning": separator + event.text})] if self._extended else []
            case e.ToolCallStarted() if event.client:
                return [self._build_chunk(self._build_call_delta(self._turn.calls[event.call_id]))]
            case (
                e.ToolCallStarted()
                | e.ToolFinished()
                | e.InputRequired()
                | e.ModelRetry()
                | e.HistorySummarized()
                | e.SamplingCompleted()
            ):
                if isinstance(event, e.ModelRetry) and event.discard and self._last_reasoned_step:
                    self._last_reasoned_step = _DISCARDED_STEP
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
        last = self._build_chunk({}, _get_finish_reason(self._turn, self._dialect))
        last |= self._build_service_fields(has_usage=True)
        if self._extended:
            last["x_gateway"] = build_gateway_fields(self._turn)
        if not self._include_usage:
            return [last]
        return [last, self._head | {"choices": [], "usage": build_usage(self._turn.usage)}]

    @property
    def has_failed(self) -> bool:
        return isinstance(self._turn.end, e.TurnFailed | e.TurnCancelled)

    def _build_service_fields(self, *, has_usage: bool = False) -> JsonObject:
        """Build the fields of the first chunk and of the last."""
        if not self._extended or self._turn.started is None:
            return {}
        fields: JsonObject = {"service_tier": self._dialect.service_tier}
        if self._dialect.groq:
            groq: JsonObject = {"id": _build_groq_id(self._turn.started.turn_id)}
            fields["x_groq"] = groq | {"usage": build_usage(self._turn.usage)} if has_usage else groq
        return fields

    def _build_call_delta(self, call: ToolCallSummary) -> JsonObject:
        index = self._client_calls
        self._client_calls += 1
        if self._dialect.functions and index == 0:
            return {"function_call": _build_function(call)}
        return {"tool_calls": [{"index": index, **_build_client_call(call)}]}

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


def build_response_usage(usage: Usage) -> JsonObject:
    """Build the usage of a response of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
