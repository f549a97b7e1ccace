"""Answers in Anthropic's Messages format, whole and as a stream.

The gateway's own fields are in `x_gateway`.
"""

from collections.abc import AsyncGenerator
from typing import Literal, assert_never
from uuid import UUID

import msgspec

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo, error_from_info
from gateway.domain.messages import JsonObject, Usage
from gateway.ports.listener import EventFold, EventListener
from gateway.wire.openai_chat_answers import build_gateway_fields, format_arguments
from gateway.wire.turn_summary import TurnSummary

StopReason = Literal["end_turn", "max_tokens", "tool_use", "pause_turn", "refusal"]
_STOP_REASONS: dict[str, StopReason] = {
    "length": "max_tokens",
    "token_limit": "max_tokens",
    "tool_calls": "tool_use",
    "step_limit": "pause_turn",
    "input_required": "pause_turn",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageWriter(EventFold):
    """Folds a turn's events into the message and its events.

    A block is never changed once another has begun, so the message equals what was streamed.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking
        self._turn = TurnSummary()
        self._blocks: list[JsonObject] = []
        self._parts: list[str] = []
        self._open_block: tuple[str, int] | None = None

    @property
    def turn(self) -> TurnSummary:
        return self._turn

    def apply(self, event: e.Event) -> None:
        self.write_event(event)

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return the events of the message for an event."""
        self._turn.apply(event)
        match event:
            case e.TextDelta():
                return self._write_delta(event, "text")
            case e.ReasoningDelta():
                return self._write_delta(event, "thinking") if self._shows_thinking else []
            case e.TurnStarted():
                return [{"type": "message_start", "message": self._build_message(event, [], None)}]
            case e.ToolCallStarted():
                return [*self._close_block(), *self._write_call(event)]
            case e.ToolFinished():
                return [*self._close_block(), *self._write_result(event)]
            case e.StepCompleted() | e.ModelRetry():
                return self._close_block()
            case e.TurnCompleted():
                return self.write_end()
            case e.TurnFailed() | e.TurnCancelled():
                return [build_error_body(event.error)]
            case (
                e.ToolProgress()
                | e.ToolLog()
                | e.InputRequired()
                | e.InputResolved()
                | e.TurnResumed()
                | e.HistorySummarized()
                | e.SamplingCompleted()
            ):
                return []
            case _:
                assert_never(event)

    def write_end(self) -> list[JsonObject]:
        """Return the last events of the message."""
        delta = {"stop_reason": self._get_stop_reason(), "stop_sequence": None}
        end = {"type": "message_delta", "delta": delta, "usage": build_usage(self._turn.usage)}
        end["x_gateway"] = build_gateway_fields(self._turn)
        return [*self._close_block(), end, {"type": "message_stop"}]

    def build_message(self) -> JsonObject:
        """Build the whole message of a turn that has ended or waits."""
        assert self._turn.started is not None
        self._close_block()
        message = self._build_message(self._turn.started, self._blocks, self._get_stop_reason())
        return message | {"x_gateway": build_gateway_fields(self._turn)}

    def _build_message(self, started: e.TurnStarted, content: list[JsonObject], stop: StopReason | None) -> JsonObject:
        return {
            "id": f"msg_{UUID(started.turn_id).hex}",
            "type": "message",
            "role": "assistant",
            "model": started.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": build_usage(self._turn.usage),
        }

    def _get_stop_reason(self) -> StopReason:
        if self._turn.refusal is not None:
            return "refusal"
        return _STOP_REASONS.get(self._turn.finish_reason or "", "end_turn")

    # --- blocks

    def _write_delta(
        self, event: e.TextDelta | e.ReasoningDelta, kind: Literal["text", "thinking"]
    ) -> list[JsonObject]:
        """Return the delta, behind the start of a new block."""
        if self._open_block == (kind, event.step):
            events: list[JsonObject] = []
        else:
            events = self._close_block()
            self._open_block = (kind, event.step)
            block = {"type": kind, kind: ""} if kind == "text" else {"type": kind, kind: "", "signature": ""}
            events += self._start_block(block)
        self._parts.append(event.text)
        events.append(self._build_delta({"type": f"{kind}_delta", kind: event.text}))
        return events

    def _write_call(self, call: e.ToolCallStarted) -> list[JsonObject]:
        """Return the block of a call."""
        arguments = _parse_arguments(call)
        block: JsonObject = {"type": "tool_use", "id": call.call_id, "name": call.tool, "input": arguments}
        if not call.client:
            block |= {"type": "mcp_tool_use", "server_name": call.server or "gateway"}
        [start] = self._start_block(block)
        if call.client:  # clients read the input from the deltas alone
            start["content_block"] = block | {"input": {}}
        delta = self._build_delta({"type": "input_json_delta", "partial_json": _encode(arguments).decode()})
        return [start, delta, self._build_stop()]

    def _write_result(self, result: e.ToolFinished) -> list[JsonObject]:
        if self._turn.calls[result.call_id].client:
            return []
        block: JsonObject = {
            "type": "mcp_tool_result",
            "tool_use_id": result.call_id,
            "is_error": result.outcome != "ok",
            "content": [_to_text_block(content) for content in result.content],
        }
        return [*self._start_block(block), self._build_stop()]

    def _start_block(self, block: JsonObject) -> list[JsonObject]:
        self._blocks.append(block)
        return [{"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}]

    def _close_block(self) -> list[JsonObject]:
        """Complete the block that is open."""
        if self._open_block is None:
            return []
        kind, step = self._open_block
        self._open_block = None
        block = self._blocks[-1] = self._blocks[-1] | {kind: "".join(self._parts)}
        self._parts = []
        if kind == "text":
            return [self._build_stop()]
        block["signature"] = f"step-{step}"
        return [self._build_delta({"type": "signature_delta", "signature": block["signature"]}), self._build_stop()]

    def _build_delta(self, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _build_stop(self) -> JsonObject:
        return {"type": "content_block_stop", "index": len(self._blocks) - 1}


def _parse_arguments(call: e.ToolCallStarted) -> dict[str, object]:
    """Return a call's arguments as an object, which the format demands."""
    if not isinstance(call.arguments, str):
        return call.arguments
    try:
        return _decode_object(call.arguments)
    except msgspec.DecodeError:
        return {"arguments": format_arguments(call)}


def _to_text_block(content: JsonObject) -> JsonObject:
    """Convert a content block of MCP.

    The format has texts alone in results.
    """
    match content:
        case {"type": "text", "text": str(text)}:
            pass
        case {"type": "resource", "resource": {"text": str(text)}}:
            pass
        case {"type": str(kind), "mimeType": str(mime)}:
            text = f"[{kind}: {mime}]"
        case _:
            text = f"[{content.get('type', 'content')}]"
    return {"type": "text", "text": text}


def build_usage(usage: Usage) -> JsonObject:
    """Build the `usage` of a message.

    Tokens from the cache are counted apart.
    """
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def build_error_body(error: ErrorInfo, status: int | None = None, request_id: str | None = None) -> JsonObject:
    """Build an error body in Anthropic's shape.

    `code` and `param` are the gateway's own.
    """
    status = error_from_info(error).status if status is None else status
    error_type = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    detail: JsonObject = {"type": error_type, "message": error.message, "code": error.code, "param": error.param}
    return {"type": "error", "error": detail, "request_id": request_id}


def format_event(event: JsonObject) -> bytes:
    """Format an event of a message as SSE."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _encode(event))


async def stream_message(listener: EventListener, *, writer: MessageWriter) -> AsyncGenerator[bytes]:
    """Stream a turn as the events of a message.

    A stream ends with `message_stop` or with an error: clients take one that is cut for a complete answer.
    """
    has_ended = has_begun = False
    async for batch in listener:
        has_ended = isinstance(batch[-1].event, e.TurnEnd)
        frames = b"".join(format_event(event) for entry in batch for event in writer.write_event(entry.event))
        yield frames if has_begun else frames + PING
        has_begun = True
    if not has_ended:
        reason = listener.close_reason or "server_stopping"
        if reason == "input_required":
            yield b"".join(map(format_event, writer.write_end()))
        else:
            info = ErrorInfo(code=reason, message=f"The stream ended before the answer: {reason}.")
            yield format_event(build_error_body(info))
