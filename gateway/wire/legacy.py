"""The formats of the gateway's forerunners, as their users call them."""

from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Message, Parameters, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.turn_summary import TurnSummary

_encode = msgspec.json.Encoder().encode


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LegacyStreamRequest(_Body):
    """`POST /stream`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prompt": "What is 23*19?"}]})

    prompt: str = Field(min_length=1, max_length=1_000_000)
    model: str | None = Field(default=None, min_length=1, max_length=200)

    def to_turn_request(self) -> TurnRequest:
        return TurnRequest((Message("user", self.prompt),), self.model or "")


class Hyperparameters(_Body):
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32_000)
    stop: str | list[str] | None = Field(default=None, description="At most four.", max_length=4)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=0, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)

    def to_parameters(self) -> Parameters:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or None
        return msgspec.convert(self.model_dump() | {"stop": stop}, Parameters)


class LegacyBatchRequest(_Body):
    """`POST /api/chat/stream`. What the model does not take of the hyperparameters is left out."""

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


class MessageRequest(_Body):
    """`POST /api/{user_id}/chat`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"message": "Add a task to buy milk"}]})

    message: str = Field(min_length=1, max_length=4_096)
    conversation_id: str | None = None

    def to_turn_request(self) -> TurnRequest:
        conversation = self.conversation_id or "new"
        return TurnRequest((Message("user", self.message),), conversation_id=conversation)


class ToolUse(BaseModel):
    tool: str
    params: Any


class MessageReply(BaseModel):
    conversation_id: str | None
    response: str
    tool_calls: list[ToolUse]


def reply(turn: TurnSummary) -> MessageReply:
    """The answer of `POST /api/{user_id}/chat`."""
    assert turn.started is not None
    asked = "\n".join(question.message for question in turn.inputs.values())
    return MessageReply(
        conversation_id=turn.started.conversation_id,
        response=turn.response or asked,
        tool_calls=[ToolUse(tool=call.tool, params=call.arguments) for call in turn.calls.values()],
    )


class LegacyMessage(BaseModel):
    role: Literal["user", "assistant"]
    content: str


class LegacyConversation(BaseModel):
    conversation_id: str
    messages: list[LegacyMessage]


class _Said:
    """The text of a turn as one: what its steps say, a blank line between."""

    def __init__(self) -> None:
        self._last_step = 0

    def add(self, delta: e.TextDelta) -> str:
        between = "\n\n" if self._last_step not in (0, delta.step) else ""
        self._last_step = delta.step
        return between + delta.text


async def plain_text(listener: EventListener) -> AsyncGenerator[bytes]:
    """The text alone. What goes wrong or has to be asked stands in brackets at its end: there is no other place."""
    said, ended, asked = _Said(), False, ""
    async for batch in listener:
        text = ""
        for entry in batch:
            match entry.event:
                case e.TextDelta() as delta:
                    text += said.add(delta)
                case e.InputRequired() as question:
                    asked = question.message
                case e.TurnFailed() | e.TurnCancelled() as end:
                    text += f"\n[error: {end.error.message}]"
                case _:
                    pass
            ended = isinstance(entry.event, e.TurnEnd)
        yield text.encode()
    if not ended:
        reason = listener.close_reason
        yield f"\n[waiting for an answer: {asked}]".encode() if asked else f"\n[error: {reason}]".encode()


async def prompt_frames(listener: EventListener, *, kept: bool) -> AsyncGenerator[bytes]:
    """`data: {"conversation_id","model"}`, then `data: {"content","finished"}` for each piece of text."""
    said, ended, asked = _Said(), False, ""
    async for batch in listener:
        told: list[JsonObject] = []
        for entry in batch:
            match entry.event:
                case e.TurnStarted() as started:
                    conversation = started.conversation_id if kept else None
                    told.append({"conversation_id": conversation, "model": started.model})
                case e.TextDelta() as delta:
                    told.append({"content": said.add(delta), "finished": False})
                case e.InputRequired() as question:
                    asked = question.message
                case e.TurnCompleted():
                    told.append({"content": "", "finished": True})
                case e.TurnFailed() | e.TurnCancelled() as end:
                    told.append(_error_frame(end.error.message, end.error.code))
                case _:
                    pass
            ended = isinstance(entry.event, e.TurnEnd)
        yield b"".join(map(_data, told))
    if not ended:
        reason = listener.close_reason or "server_stopping"
        last = {"content": asked, "finished": True} if asked else _error_frame("The stream broke off.", reason)
        yield _data(last)


def _error_frame(message: str, code: str) -> JsonObject:
    return {"content": "", "finished": True, "error": {"code": code, "message": message}}


def _data(value: JsonObject) -> bytes:
    return b"data: %s\n\n" % _encode(value)
