"""A turn as the events of an AG-UI run.

The types and the encoder are the protocol's own. Importing this module takes 55 ms, so it is imported when it is used
(docs/adr/0016). What the protocol has no event for is a custom event with the gateway's own name and fields.
"""

from collections.abc import AsyncGenerator, Iterable
from typing import Literal, assert_never
from uuid import UUID

import ag_ui.core as ag
import msgspec
from ag_ui.encoder import EventEncoder

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo
from gateway.domain.messages import JsonObject, Usage
from gateway.ports.listener import EventListener
from gateway.wire.front_ends.resumable import ResumableWriter
from gateway.wire.front_ends.sent_chat import format_message_id
from gateway.wire.openai_chat_answers import format_arguments

PROTOCOL_VERSION = "1.0"
_DELTA_TYPES = {"text": "TEXT_MESSAGE_CONTENT", "reasoning": "REASONING_MESSAGE_CONTENT"}
_APPROVED = {"type": "boolean", "description": "False declines the call."}
_encode = msgspec.json.Encoder().encode
_encode_official = EventEncoder().encode

AgUiEvent = ag.BaseEvent | bytes
"""Event of the protocol.

A delta is its JSON, because pydantic takes 20 times as long for it.
"""


class RunWriter(ResumableWriter[AgUiEvent]):
    """Writes a turn's events as those of a run.

    Clients before version 1.0 (`is_legacy`, such as CopilotKit) refuse what that version added to the end of a
    run.
    """

    def __init__(self, thread_id: str, run_id: str, *, answered: Iterable[str] = (), is_legacy: bool = False) -> None:
        super().__init__(answered)
        self._is_legacy = is_legacy
        self._thread_id = thread_id
        self._run_id = run_id
        self._started: e.TurnStarted | None = None
        self._step: int | None = None
        self._step_message: str | None = None
        self._open_part: tuple[Literal["text", "reasoning"], str] | None = None
        self._part_count = 0
        self._client_calls: list[str] = []
        self._questions: dict[str, e.InputRequired] = {}
        self._warnings: list[str] = []

    def _convert_event(self, event: e.Event) -> list[AgUiEvent]:
        match event:
            case e.TextDelta():
                return self._write_delta(event, "text")
            case e.ReasoningDelta():
                return self._write_delta(event, "reasoning")
            case e.TurnStarted():
                self._started, self._warnings = event, list(event.warnings)
                return [self._build_start()]
            case e.ToolCallStarted():
                return [*self._open_step(event.step), *self._close_part(), *self._write_tool_call_events(event)]
            case e.ToolFinished():
                return [self._build_result(event)]
            case e.StepCompleted():
                if isinstance(event.warning, str):
                    self._warnings.append(event.warning)
                return self._close_part()
            case e.InputRequired():
                self._questions[event.input_id] = event
                return [*self._close_part(), _build_custom(event)]
            case e.InputResolved():
                self._questions.pop(event.input_id, None)
                return [_build_custom(event)]
            case e.ModelRetry():
                events = [*self._close_part(), _build_custom(event)]
                self._step_message = None  # what follows is in other messages than what the retry makes void
                return events
            case e.ToolProgress() | e.ToolLog() | e.HistorySummarized() | e.SamplingCompleted() | e.TurnResumed():
                return [_build_custom(event)]
            case e.TurnCompleted():
                pending = None if self._is_legacy else self._client_calls or None
                outcome = ag.RunFinishedSuccessOutcome(pending_tool_call_ids=pending)
                return [*self._close_step(), self._build_end(outcome, event)]
            case e.TurnCancelled() if not self._is_legacy:
                return [*self._close_step(), self._build_end(ag.RunFinishedCancelledOutcome())]
            case e.TurnFailed() | e.TurnCancelled():
                return [*self._close_step(), _build_error(event.error)]
            case _:
                assert_never(event)

    def write_pause(self) -> list[AgUiEvent]:
        """Return the end of a run whose turn waits for a person."""
        interrupts = [_build_interrupt(question) for question in self._questions.values()]
        outcome = (
            ag.RunFinishedInterruptOutcome(interrupts=interrupts) if interrupts else ag.RunFinishedSuccessOutcome()
        )
        return [*self._resume_or_close(), self._build_end(outcome)]

    def write_closing(self, reason: str) -> list[AgUiEvent]:
        """Return the end of a run whose stream ends before its turn."""
        error = ErrorInfo(code=reason, message=f"The stream ended before the answer: {reason}.")
        return [*self._resume_or_close(), _build_error(error)]

    # --- the run

    def _resume_or_close(self) -> list[AgUiEvent]:
        return self._resume_writing() if self._is_silent else self._close_step()

    def _resume_writing(self) -> list[AgUiEvent]:
        """Return the start of the run that continues the turn."""
        self._is_silent = False
        self._step = self._step_message = self._open_part = None
        return [self._build_start()]

    def _build_start(self) -> ag.BaseEvent:
        started = self._started
        assert started is not None
        metadata: JsonObject = {"turn_id": started.turn_id, "model": started.model}
        if started.warnings:
            metadata["warnings"] = list(started.warnings)
        return ag.RunStartedEvent(
            thread_id=self._thread_id,
            run_id=self._run_id,
            protocol_version=PROTOCOL_VERSION,
            metadata={"gateway": metadata},
        )

    def _build_end(
        self,
        outcome: ag.RunFinishedSuccessOutcome | ag.RunFinishedInterruptOutcome | ag.RunFinishedCancelledOutcome,
        end: e.TurnCompleted | None = None,
    ) -> ag.BaseEvent:
        started = self._started
        assert started is not None
        metadata: JsonObject = {"turn_id": started.turn_id, "conversation_id": started.conversation_id}
        metadata |= {"warnings": self._warnings} if self._warnings else {}
        if end is not None:
            metadata |= {"finish_reason": end.finish_reason, "cost_usd": end.cost_usd, "steps": end.steps}
        return ag.RunFinishedEvent(
            thread_id=self._thread_id,
            run_id=self._run_id,
            outcome=outcome,
            usage=None if end is None else [_build_token_usage(end.usage, started.model)],
            metadata={"gateway": metadata},
        )

    def _open_step(self, step: int) -> list[AgUiEvent]:
        if self._step == step:
            return []
        events = self._close_step()
        self._step = step
        return [*events, ag.StepStartedEvent(step_name=f"step-{step}")]

    def _close_step(self) -> list[AgUiEvent]:
        events = self._close_part()
        if self._step is not None:
            events.append(ag.StepFinishedEvent(step_name=f"step-{self._step}"))
        self._step = self._step_message = None
        return events

    # --- messages

    def _write_delta(
        self, event: e.TextDelta | e.ReasoningDelta, kind: Literal["text", "reasoning"]
    ) -> list[AgUiEvent]:
        part = self._open_part
        if part is not None and part[0] == kind and self._step == event.step:
            return [_encode_delta(kind, part[1], event.text)]
        events = [*self._open_step(event.step), *self._close_part()]
        message_id = self._create_message_id()
        self._open_part = (kind, message_id)
        if kind == "reasoning":
            events += [
                ag.ReasoningStartEvent(message_id=message_id),
                ag.ReasoningMessageStartEvent(message_id=message_id),
            ]
        else:
            self._step_message = message_id
            is_refusal = isinstance(event, e.TextDelta) and event.refusal is True
            metadata = {"gateway": {"refusal": True}} if is_refusal else None
            events.append(ag.TextMessageStartEvent(message_id=message_id, role="assistant", metadata=metadata))
        return [*events, _encode_delta(kind, message_id, event.text)]

    def _close_part(self) -> list[AgUiEvent]:
        if self._open_part is None:
            return []
        kind, message_id = self._open_part
        self._open_part = None
        if kind == "text":
            return [ag.TextMessageEndEvent(message_id=message_id)]
        return [ag.ReasoningMessageEndEvent(message_id=message_id), ag.ReasoningEndEvent(message_id=message_id)]

    def _create_message_id(self) -> str:
        assert self._started is not None
        self._part_count += 1
        return format_message_id(UUID(self._started.turn_id), str(self._part_count))

    # --- calls

    def _write_tool_call_events(self, call: e.ToolCallStarted) -> list[AgUiEvent]:
        """Return the events of a call.

        It belongs to the message of its step.
        """
        if self._step_message is None:
            self._step_message = self._create_message_id()
        if call.client:
            self._client_calls.append(call.call_id)
        metadata = None if call.client else {"gateway": {"server": call.server}}
        return [
            ag.ToolCallStartEvent(
                tool_call_id=call.call_id,
                tool_call_name=call.tool,
                parent_message_id=self._step_message,
                metadata=metadata,
            ),
            ag.ToolCallArgsEvent(tool_call_id=call.call_id, delta=format_arguments(call)),
            ag.ToolCallEndEvent(tool_call_id=call.call_id),
        ]

    def _build_result(self, result: e.ToolFinished) -> ag.BaseEvent:
        return ag.ToolCallResultEvent(
            message_id=self._create_message_id(),
            tool_call_id=result.call_id,
            content=_format_result(result),
            role="tool",
            metadata={"gateway": {"outcome": result.outcome, "duration_ms": result.duration_ms}},
        )


def _format_result(result: e.ToolFinished) -> str:
    """Return a result's JSON, or its texts or blocks."""
    is_text = all(block.get("type") == "text" for block in result.content)
    text = "\n".join(str(block.get("text", "")) for block in result.content) if is_text else ""
    if result.outcome != "ok":
        return text if text.lower().startswith("error") else f"Error: {text or result.outcome}"
    if result.structured is not None:
        return _encode(result.structured).decode()
    return text if is_text else _encode(result.content).decode()


def _build_interrupt(question: e.InputRequired) -> ag.Interrupt:
    schema = question.schema
    if question.kind == "approval":
        schema = schema or {"type": "object"}
        properties: JsonObject = schema.get("properties") or {}
        schema |= {"properties": {"approved": _APPROVED} | properties}
    return ag.Interrupt(
        id=question.input_id,
        reason=question.kind,
        message=question.message,
        tool_call_id=question.call_id,
        response_schema=schema,
        expires_at=question.expires_at,
        metadata={"gateway": {"url": question.url}} if question.url else None,
    )


def _build_custom(event: e.Event) -> ag.BaseEvent:
    return ag.CustomEvent(name=e.get_event_type(event), value=msgspec.to_builtins(event))


def _build_error(error: ErrorInfo) -> ag.BaseEvent:
    return ag.RunErrorEvent(message=error.message, code=error.code)


def _build_token_usage(usage: Usage, model: str) -> ag.TokenUsage:
    return ag.TokenUsage(
        model=model,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cached_input_tokens=usage.cached_tokens,
    )


def _encode_delta(kind: Literal["text", "reasoning"], message_id: str, text: str) -> bytes:
    return _encode({"type": _DELTA_TYPES[kind], "messageId": message_id, "delta": text})


def format_events(events: Iterable[AgUiEvent]) -> bytes:
    """Format events as server-sent events."""
    return b"".join(
        b"data: %s\n\n" % event if isinstance(event, bytes) else _encode_official(event).encode() for event in events
    )


async def stream_run(listener: EventListener, *, writer: RunWriter) -> AsyncGenerator[bytes]:
    """Stream a turn as a run.

    A stream ends with the end of the run or an error: clients take one that is cut for a complete run.
    """
    has_ended = False
    async for batch in listener:
        has_ended = isinstance(batch[-1].event, e.TurnEnd)
        if frames := format_events(event for entry in batch for event in writer.write_event(entry.event)):
            yield frames
    if not has_ended:
        reason = listener.close_reason or "server_stopping"
        yield format_events(writer.write_pause() if reason == "input_required" else writer.write_closing(reason))
