"""Wire formats of the legacy endpoints."""

import re
from collections.abc import AsyncGenerator, Collection
from typing import Any, Literal, assert_never

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.domain import events as e
from gateway.domain.conversation_ids import NEW_CONVERSATION, NEW_NUMBERED_CONVERSATION
from gateway.domain.messages import JsonObject, Message, Parameters, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.request_fields import FieldReader
from gateway.wire.turn_fields import SystemText, TurnFields
from gateway.wire.turn_summary import TurnSummary
from gateway_runtime.requests.model import ItemList, RequestModel

_encode = msgspec.json.Encoder().encode
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


class _LegacyRequest(TurnFields):
    """Request of a legacy route.

    Parameters that the model does not support are dropped with a warning.
    """

    drop_unsupported: bool = True


class LegacyStreamRequest(_LegacyRequest):
    """Body of `POST /stream`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "What is 23*19?"}]})
    streams = True

    prompt: str = Field(min_length=1, max_length=1_000_000)
    system: SystemText = None

    def to_turn_request(self, *, gateway_tools: Collection[str] = ()) -> TurnRequest:
        messages = (Message("user", self.prompt),)
        return self.build_turn_request(messages, system=self.system, gateway_tools=gateway_tools)


class Hyperparameters(RequestModel):
    """Sampling parameters of the model."""

    model_config = ConfigDict(extra="ignore")  # `FieldReader` reports further fields

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32_000)
    stop: str | ItemList[str] | None = Field(
        default=None, description="Up to four texts at which generation stops.", max_length=4
    )
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=0, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)

    def to_parameters(self) -> Parameters:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or None
        return msgspec.convert(self.model_dump() | {"stop": stop}, Parameters)


class LegacyChatStreamRequest(_LegacyRequest):
    """Body of `POST /api/chat/stream`.

    Hyperparameters that the model does not support are dropped.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_prompt": "What is 23*19?"}]})
    streams = True

    user_prompt: str = Field(min_length=1, max_length=1_000_000)
    system_prompt: SystemText = None
    hyperparameters: Hyperparameters = Hyperparameters()
    save_conversation: bool = True

    @classmethod
    def _read_body(cls, data: Any, reader: FieldReader) -> Any:
        body = super()._read_body(data, reader)
        return reader.read_member(body, "hyperparameters", Hyperparameters.__pydantic_fields__)

    @property
    def is_saved(self) -> bool:
        """Whether the turn and its conversation are stored."""
        return self.store and self.save_conversation

    def build_parameters(self) -> Parameters:
        return self.hyperparameters.to_parameters().with_defaults(super().build_parameters())

    def to_turn_request(self, *, gateway_tools: Collection[str] = ()) -> TurnRequest:
        messages = (Message("user", self.user_prompt),)
        request = self.build_turn_request(messages, system=self.system_prompt, gateway_tools=gateway_tools)
        conversation_id = self.conversation_id or (NEW_CONVERSATION if self.is_saved else None)
        return msgspec.structs.replace(request, conversation_id=conversation_id, store=self.is_saved)


class LegacyChatRequest(_LegacyRequest):
    """Body of `POST /api/{user_id}/chat`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"message": "Add a task to buy milk"}]})
    streams = False

    message: str = Field(min_length=1, max_length=4_096)
    system: SystemText = None

    def to_turn_request(self, *, gateway_tools: Collection[str] = ()) -> TurnRequest:
        messages = (Message("user", self.message),)
        request = self.build_turn_request(messages, system=self.system, gateway_tools=gateway_tools)
        conversation_id = self.conversation_id or (NEW_NUMBERED_CONVERSATION if self.store else None)
        return msgspec.structs.replace(request, conversation_id=conversation_id)


class LegacyToolCall(BaseModel):
    """Tool call of a turn."""

    tool: str
    params: object


class LegacyChatResponse(BaseModel):
    """Answer of a turn with its tool calls."""

    conversation_id: int | str | None
    response: str
    tool_calls: list[LegacyToolCall]
    warnings: list[str] = []


def build_legacy_response(turn: TurnSummary) -> LegacyChatResponse:
    """Build the answer of `POST /api/{user_id}/chat`.

    A turn without text answers with its questions.
    """
    assert turn.started is not None
    questions = "\n".join(question.message for question in turn.inputs.values())
    return LegacyChatResponse(
        conversation_id=_to_number(turn.started.conversation_id),
        response=turn.response or questions,
        tool_calls=[LegacyToolCall(tool=call.tool, params=call.arguments) for call in turn.calls.values()],
        warnings=list(turn.started.warnings),
    )


def _to_number(conversation_id: str | None) -> int | str | None:
    """Return an id of at most 15 digits as a number.

    JavaScript holds such a number exactly.
    """
    is_number = conversation_id is not None and _NUMBER.fullmatch(conversation_id) is not None
    return int(conversation_id) if conversation_id is not None and is_number else conversation_id


class LegacyMessage(BaseModel):
    """Message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class LegacyConversation(BaseModel):
    """Messages of a conversation, oldest first."""

    conversation_id: str
    messages: list[LegacyMessage]


class _StepTextJoiner:
    """Separates the text of a turn's steps by blank lines."""

    def __init__(self) -> None:
        self._last_step = 0

    def separate_steps(self, delta: e.TextDelta) -> str:
        """Return a delta's text, after a blank line at a new step."""
        separator = "\n\n" if self._last_step not in (0, delta.step) else ""
        self._last_step = delta.step
        return separator + delta.text


async def stream_plain_text(listener: EventListener) -> AsyncGenerator[bytes]:
    """Stream only the text.

    A failure or a question is appended in brackets.
    """
    joiner, has_ended, question = _StepTextJoiner(), False, ""
    async for batch in listener:
        text = ""
        for entry in batch:
            match entry.event:
                case e.TextDelta() as delta:
                    text += joiner.separate_steps(delta)
                case e.InputRequired(message=message):
                    question = message
                case e.TurnFailed() | e.TurnCancelled() as end:
                    text += f"\n[error: {end.error.message}]"
                case (
                    e.TurnStarted()
                    | e.HistorySummarized()
                    | e.SamplingCompleted()
                    | e.ReasoningDelta()
                    | e.ToolCallStarted()
                    | e.ToolProgress()
                    | e.ToolLog()
                    | e.ToolFinished()
                    | e.InputResolved()
                    | e.TurnResumed()
                    | e.StepCompleted()
                    | e.ModelRetry()
                    | e.TurnCompleted()
                ):
                    pass
                case _:
                    assert_never(entry.event)
            has_ended = isinstance(entry.event, e.TurnEnd)
        yield text.encode()
    if not has_ended:
        reason = listener.close_reason
        yield f"\n[waiting for an answer: {question}]".encode() if question else f"\n[error: {reason}]".encode()


async def stream_legacy_frames(listener: EventListener, *, stored: bool) -> AsyncGenerator[bytes]:
    """Stream the frames of `POST /api/chat/stream`.

    First `data: {"conversation_id","model"}` (and `warnings`, if any), then `data: {"content","finished"}` for each
    text delta.
    """
    joiner, has_ended, question = _StepTextJoiner(), False, ""
    async for batch in listener:
        frames: list[JsonObject] = []
        for entry in batch:
            match entry.event:
                case e.TurnStarted() as started:
                    conversation = started.conversation_id if stored else None
                    warnings: JsonObject = {"warnings": started.warnings} if started.warnings else {}
                    frames.append({"conversation_id": conversation, "model": started.model, **warnings})
                case e.TextDelta() as delta:
                    frames.append({"content": joiner.separate_steps(delta), "finished": False})
                case e.InputRequired(message=message):
                    question = message
                case e.TurnCompleted():
                    frames.append({"content": "", "finished": True})
                case e.TurnFailed() | e.TurnCancelled() as end:
                    frames.append(_build_error_frame(end.error.message, end.error.code))
                case (
                    e.HistorySummarized()
                    | e.SamplingCompleted()
                    | e.ReasoningDelta()
                    | e.ToolCallStarted()
                    | e.ToolProgress()
                    | e.ToolLog()
                    | e.ToolFinished()
                    | e.InputResolved()
                    | e.TurnResumed()
                    | e.StepCompleted()
                    | e.ModelRetry()
                ):
                    pass
                case _:
                    assert_never(entry.event)
            has_ended = isinstance(entry.event, e.TurnEnd)
        yield b"".join(map(_encode_frame, frames))
    if not has_ended:
        reason = listener.close_reason or "server_stopping"
        error = _build_error_frame("The stream ended before the turn ended.", reason)
        yield _encode_frame({"content": question, "finished": True} if question else error)


def _build_error_frame(message: str, code: str) -> JsonObject:
    return {"content": "", "finished": True, "error": {"code": code, "message": message}}


def _encode_frame(value: JsonObject) -> bytes:
    return b"data: %s\n\n" % _encode(value)
