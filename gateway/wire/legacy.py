"""Wire formats of the legacy endpoints."""

from collections.abc import AsyncGenerator
from typing import Literal, assert_never

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, Parameters, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.request_model import ItemList, RequestModel
from gateway.wire.turn_summary import TurnSummary

_encode = msgspec.json.Encoder().encode


class LegacyStreamRequest(RequestModel):
    """Body of `POST /stream`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prompt": "What is 23*19?"}]})

    prompt: str = Field(min_length=1, max_length=1_000_000)
    model: str | None = Field(default=None, min_length=1, max_length=200)

    def to_turn_request(self) -> TurnRequest:
        return TurnRequest((Message("user", self.prompt),), self.model or "")


class Hyperparameters(RequestModel):
    """Sampling parameters of the model."""

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


class LegacyChatStreamRequest(RequestModel):
    """Body of `POST /api/chat/stream`.

    Hyperparameters that the model does not support are dropped.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_prompt": "What is 23*19?"}]})

    user_prompt: str = Field(min_length=1, max_length=1_000_000)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    system_prompt: str | None = Field(default=None, max_length=1_000_000)
    hyperparameters: Hyperparameters = Hyperparameters()
    save_conversation: bool = True
    conversation_id: str | None = None

    def to_turn_request(self) -> TurnRequest:
        return TurnRequest(
            messages=(Message("user", self.user_prompt),),
            model=self.model or "",
            parameters=self.hyperparameters.to_parameters(),
            conversation_id=self.conversation_id or ("new" if self.save_conversation else None),
            system=self.system_prompt,
            store=self.save_conversation,
            drop_unsupported=True,
        )


class LegacyChatRequest(RequestModel):
    """Body of `POST /api/{user_id}/chat`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"message": "Add a task to buy milk"}]})

    message: str = Field(min_length=1, max_length=4_096)
    conversation_id: str | None = None

    def to_turn_request(self) -> TurnRequest:
        conversation = self.conversation_id or "new"
        return TurnRequest((Message("user", self.message),), conversation_id=conversation)


class LegacyToolCall(BaseModel):
    """Tool call of a turn."""

    tool: str
    params: object


class LegacyChatResponse(BaseModel):
    """Answer of a turn with its tool calls."""

    conversation_id: str | None
    response: str
    tool_calls: list[LegacyToolCall]


def build_legacy_response(turn: TurnSummary) -> LegacyChatResponse:
    """Build the answer of `POST /api/{user_id}/chat`.

    A turn without text answers with its questions.
    """
    assert turn.started is not None
    questions = "\n".join(question.message for question in turn.inputs.values())
    return LegacyChatResponse(
        conversation_id=turn.started.conversation_id,
        response=turn.response or questions,
        tool_calls=[LegacyToolCall(tool=call.tool, params=call.arguments) for call in turn.calls.values()],
    )


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

    First `data: {"conversation_id","model"}`, then `data: {"content","finished"}` for each text delta.
    """
    joiner, has_ended, question = _StepTextJoiner(), False, ""
    async for batch in listener:
        frames: list[JsonObject] = []
        for entry in batch:
            match entry.event:
                case e.TurnStarted() as started:
                    conversation = started.conversation_id if stored else None
                    frames.append({"conversation_id": conversation, "model": started.model})
                case e.TextDelta() as delta:
                    frames.append({"content": joiner.separate_steps(delta), "finished": False})
                case e.InputRequired(message=message):
                    question = message
                case e.TurnCompleted():
                    frames.append({"content": "", "finished": True})
                case e.TurnFailed() | e.TurnCancelled() as end:
                    frames.append(_build_error_frame(end.error.message, end.error.code))
                case (
                    e.ReasoningDelta()
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
