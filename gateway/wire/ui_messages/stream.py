"""A turn as the AI SDK's UI message stream.

The gateway's tools are dynamic tools that the provider executes; calls of a front end's own tools are static ones. What
the format has no words for is in `data-…` chunks. A chunk of an unknown type would put the chat into an error, so only
types that versions 6 and 7 of the SDK both know are written.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Literal, assert_never

import msgspec

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo
from gateway.domain.messages import JsonObject, Message
from gateway.ports.listener import EventListener
from gateway.wire.front_ends.resumable import ResumableWriter
from gateway.wire.openai_chat_answers import build_usage
from gateway.wire.sse import DONE
from gateway.wire.ui_messages.parts import DENIED_TEXT, join_text_parts

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "token_limit": "length",
    "step_limit": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "input_required": "tool-calls",
}
_VOID_CALL = "The model was asked again, and this call was not run."
_encode = msgspec.json.Encoder().encode


class UIMessageWriter(ResumableWriter[JsonObject]):
    """Writes a turn's events as chunks of one message.

    `message_id` is that of the answer, or of the message that it continues.
    """

    def __init__(self, message_id: str, *, answered: Iterable[str] = ()) -> None:
        super().__init__(answered)
        self._message_id = message_id
        self._metadata: JsonObject = {}
        self._step: int | None = None
        self._open_part: tuple[Literal["text", "reasoning"], str] | None = None
        self._part_count = 0
        self._has_refused = False
        self._calls: dict[str, e.ToolCallStarted] = {}
        self._open_calls: set[str] = set()
        self._questions: dict[str, e.InputRequired] = {}
        self._declined: set[str] = set()
        self._warnings: list[str] = []

    def _convert_event(self, event: e.Event) -> list[JsonObject]:
        match event:
            case e.TextDelta():
                return self._write_delta(event, "text")
            case e.ReasoningDelta():
                return self._write_delta(event, "reasoning")
            case e.TurnStarted():
                return self._begin_message_turn(event)
            case e.ToolCallStarted():
                return [*self._open_step(event.step), *self._close_part(), *self._write_tool_input(event)]
            case e.ToolFinished():
                return self._write_result(event)
            case e.ToolProgress() | e.ToolLog() | e.HistorySummarized() | e.SamplingCompleted():
                return [_build_notice(event)]
            case e.ModelRetry():
                return [*self._close_part(), *self._discard_calls(event), _build_notice(event)]
            case e.InputRequired():
                return self._write_question(event)
            case e.InputResolved():
                return self._write_answer(event)
            case e.StepCompleted():
                if isinstance(event.warning, str):
                    self._warnings.append(event.warning)
                return self._close_part()
            case e.TurnCompleted():
                return self._write_finish(event)
            case e.TurnFailed():
                return [*self.close_step(), _build_error(event.error)]
            case e.TurnCancelled():
                return [*self.close_step(), {"type": "abort", "reason": event.error.message}]
            case e.TurnResumed():
                return []
            case _:
                assert_never(event)

    def write_pause(self) -> list[JsonObject]:
        """Return the last chunks of a turn that waits for a person."""
        metadata = self._metadata | {"finish_reason": "input_required"}
        return [
            *(self._resume_writing() if self._is_silent else self.close_step()),
            {"type": "finish", "finishReason": "tool-calls", "messageMetadata": metadata},
        ]

    def write_closing(self, reason: str) -> list[JsonObject]:
        """Return the last chunks of a stream that ends before its turn."""
        error = ErrorInfo(code=reason, message=f"The stream ended before the answer: {reason}.")
        return [*(self._resume_writing() if self._is_silent else self.close_step()), _build_error(error)]

    def write_results(self, results: Iterable[Message]) -> list[JsonObject]:
        """Return the outputs of a front end's tools."""
        return [
            {"type": "tool-output-available", "toolCallId": result.tool_call_id, "output": result.text}
            for result in results
            if result.role == "tool" and result.tool_call_id in self._calls
        ]

    def close_step(self) -> list[JsonObject]:
        """Return the end of what is open."""
        chunks = self._close_part()
        if self._step is not None:
            self._step = None
            chunks.append({"type": "finish-step"})
        return chunks

    # --- the message

    def _begin_message_turn(self, started: e.TurnStarted) -> list[JsonObject]:
        """Return the start of the message, or note its next turn."""
        is_first = not self._metadata
        self._metadata = {"turn_id": started.turn_id, "model": started.model}
        if started.conversation_id is not None:
            self._metadata["conversation_id"] = started.conversation_id
        self._warnings = list(started.warnings)
        if self._warnings:
            self._metadata["warnings"] = self._warnings
        return self._write_start() if is_first else [*self.close_step(), _build_metadata(self._metadata)]

    def _resume_writing(self) -> list[JsonObject]:
        """Return the start of the rest of a message."""
        self._is_silent = False
        self._step = self._open_part = None
        return self._write_start()

    def _write_start(self) -> list[JsonObject]:
        return [{"type": "start", "messageId": self._message_id, "messageMetadata": self._metadata}]

    def _write_finish(self, end: e.TurnCompleted) -> list[JsonObject]:
        metadata = self._metadata | {
            "finish_reason": end.finish_reason,
            "usage": build_usage(end.usage),
            "steps": end.steps,
            "duration_ms": end.duration_ms,
        }
        metadata |= {} if end.cost_usd is None else {"cost_usd": end.cost_usd}
        metadata |= {"warnings": self._warnings} if self._warnings else {}
        metadata |= {"cached": True} if end.cached else {}
        reason = "content-filter" if self._has_refused else _FINISH_REASONS.get(end.finish_reason, "other")
        return [*self.close_step(), {"type": "finish", "finishReason": reason, "messageMetadata": metadata}]

    def _open_step(self, step: int) -> list[JsonObject]:
        if self._step == step:
            return []
        chunks = self.close_step()
        self._step = step
        return [*chunks, {"type": "start-step"}]

    # --- text and reasoning

    def _write_delta(
        self, event: e.TextDelta | e.ReasoningDelta, kind: Literal["text", "reasoning"]
    ) -> list[JsonObject]:
        open_part = self._open_part
        if open_part is not None and open_part[0] == kind and self._step == event.step:
            return [{"type": f"{kind}-delta", "id": open_part[1], "delta": event.text}]
        chunks = [*self._open_step(event.step), *self._close_part()]
        self._part_count += 1
        part_id = f"{kind}-{self._part_count}"
        self._open_part = (kind, part_id)
        start: JsonObject = {"type": f"{kind}-start", "id": part_id}
        if isinstance(event, e.TextDelta) and event.refusal is True:
            self._has_refused = True
            start["providerMetadata"] = {"gateway": {"refusal": True}}
        return [*chunks, start, {"type": f"{kind}-delta", "id": part_id, "delta": event.text}]

    def _close_part(self) -> list[JsonObject]:
        if self._open_part is None:
            return []
        kind, part_id = self._open_part
        self._open_part = None
        return [{"type": f"{kind}-end", "id": part_id}]

    # --- tools and questions

    def _write_tool_input(self, call: e.ToolCallStarted) -> list[JsonObject]:
        self._calls[call.call_id] = call
        self._open_calls.add(call.call_id)
        head: JsonObject = {"toolCallId": call.call_id, "toolName": call.tool}
        if not call.client:
            metadata = {"server": call.server} if call.server else {}
            head |= {"dynamic": True, "providerExecuted": True, "toolMetadata": metadata}
        return [
            {"type": "tool-input-start", **head},
            {"type": "tool-input-available", **head, "input": call.arguments},
        ]

    def _discard_calls(self, retry: e.ModelRetry) -> list[JsonObject]:
        """Return the end of the calls of a step that is void."""
        if not retry.discard:
            return []
        void = [call_id for call_id in self._open_calls if self._calls[call_id].step == retry.step]
        self._open_calls.difference_update(void)
        return [{"type": "tool-output-error", "toolCallId": call_id, "errorText": _VOID_CALL} for call_id in void]

    def _write_result(self, result: e.ToolFinished) -> list[JsonObject]:
        self._open_calls.discard(result.call_id)
        head: JsonObject = {"toolCallId": result.call_id}
        if result.outcome == "denied" and result.call_id in self._declined:
            return [{"type": "tool-output-denied", **head}]
        head |= {"providerExecuted": True, "dynamic": True}
        if result.outcome == "ok":
            return [{"type": "tool-output-available", **head, "output": _build_output(result)}]
        text = join_text_parts(result.content) or (DENIED_TEXT if result.outcome == "denied" else result.outcome)
        return [{"type": "tool-output-error", **head, "errorText": text}]

    def _write_question(self, question: e.InputRequired) -> list[JsonObject]:
        self._questions[question.input_id] = question
        if question.kind != "approval" or question.call_id not in self._calls:
            return [*self._close_part(), _build_input(question)]
        request: JsonObject = {"type": "tool-approval-request", "approvalId": question.input_id}
        request |= {"toolCallId": question.call_id, "reason": question.message}
        if question.schema is not None:
            request["approvalDescriptor"] = {"schema": question.schema, "expires_at": question.expires_at}
        return [*self._close_part(), request]

    def _write_answer(self, answer: e.InputResolved) -> list[JsonObject]:
        question = self._questions.get(answer.input_id)
        if answer.action in ("decline", "cancel"):
            self._declined.add(answer.call_id)
        arguments = (answer.content or {}).get("arguments")
        if question is None or question.kind != "approval":
            return [] if question is None else [_build_input(question, answer)]
        if answer.action != "accept" or not isinstance(arguments, dict) or answer.call_id not in self._calls:
            return []
        call = msgspec.structs.replace(self._calls[answer.call_id], arguments=arguments)
        return self._write_tool_input(call)[1:]  # the call ran with these arguments


def _build_output(result: e.ToolFinished) -> object:
    """Return a result: its JSON, its text, or its content blocks."""
    if result.structured is not None:
        return result.structured
    is_text = all(block.get("type") == "text" for block in result.content)
    return join_text_parts(result.content) if is_text else result.content


def _build_metadata(metadata: JsonObject) -> JsonObject:
    return {"type": "message-metadata", "messageMetadata": metadata}


def _build_input(question: e.InputRequired, answer: e.InputResolved | None = None) -> JsonObject:
    """Build the part of a question, or its update."""
    data = msgspec.to_builtins(question) | {"answer": None if answer is None else answer.action}
    return {"type": "data-input", "id": question.input_id, "data": data}


def _build_notice(event: e.Event) -> JsonObject:
    """Build a chunk that no message keeps."""
    kind = e.get_event_type(event).replace(".", "-")
    return {"type": f"data-{kind}", "data": msgspec.to_builtins(event), "transient": True}


def _build_error(error: ErrorInfo) -> JsonObject:
    return {"type": "error", "errorText": error.message, "code": error.code}


def format_chunks(chunks: Iterable[JsonObject]) -> bytes:
    """Format chunks as server-sent events."""
    return b"".join(b"data: %s\n\n" % _encode(chunk) for chunk in chunks)


class EarlierTurn(msgspec.Struct, frozen=True):
    """An ended turn of a message, and results of its front end."""

    events: AsyncIterator[e.Event]
    results: Sequence[Message]


async def stream_ui_message(
    listener: EventListener, *, writer: UIMessageWriter, earlier: Sequence[EarlierTurn] = ()
) -> AsyncGenerator[bytes]:
    """Stream a turn, after the earlier turns of its message.

    A stream ends with `finish`, `abort` or `error`: clients take one that is cut for a complete answer.
    """
    for turn in earlier:
        async for event in turn.events:
            if not isinstance(event, e.TurnEnd):
                yield format_chunks(writer.write_event(event))
        yield format_chunks([*writer.write_results(turn.results), *writer.close_step()])
    has_ended = False
    async for batch in listener:
        has_ended = isinstance(batch[-1].event, e.TurnEnd)
        frames = format_chunks(chunk for entry in batch for chunk in writer.write_event(entry.event))
        if frames:
            yield frames
    if not has_ended:
        reason = listener.close_reason or "server_stopping"
        yield format_chunks(writer.write_pause() if reason == "input_required" else writer.write_closing(reason))
    yield DONE
