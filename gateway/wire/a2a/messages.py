"""Messages of A2A's clients: requests of new tasks, and answers to questions."""

import base64
from collections.abc import Sequence
from typing import Any, Literal, cast
from uuid import UUID

import msgspec
from pydantic import Field, ValidationError

from gateway.domain.errors import InvalidRequest, UnsupportedParameter
from gateway.domain.messages import (
    JSON_DECODE_ERRORS,
    Answer,
    Approval,
    CodeMode,
    JsonObject,
    Message,
    Question,
    StoredQuestion,
    TurnRequest,
)
from gateway.wire.request_model import ToolsetChoice
from gateway.wire.tool_offer import ToolOffer
from gateway_runtime.requests.model import ItemList, RequestModel

_encode = msgspec.json.Encoder().encode
_TEXT_TYPES = ("application/json", "application/xml", "application/yaml")
_MAX_SHOWN_LENGTH = 80
_YES = frozenset({"yes", "y", "ok", "okay", "accept", "approve", "approved", "allow", "allowed", "confirm", "true"})
_NO = frozenset({"no", "n", "decline", "declined", "deny", "denied", "reject", "rejected", "disallow", "false"})


class MessageOptions(RequestModel):
    """Options of a request.

    They are in its metadata, or in that of its message.
    """

    model: str | None = Field(default=None, min_length=1, max_length=200)
    system: str | None = Field(default=None, max_length=1_000_000)
    tools: Literal["all", "none"] | ItemList[str] | None = None
    approval: Approval | None = None
    code: CodeMode | None = None
    toolset: ToolsetChoice = None

    @property
    def tool_selection(self) -> str | list[str] | None:
        """Gateway tools of the request; a toolset alone asks for all."""
        return "all" if self.tools is None and self.toolset is not None else self.tools


def read_options(*metadata: JsonObject) -> MessageOptions:
    """Read the options of metadata; other members are the client's own.

    Raises:
        InvalidRequest: an option is not valid.
    """
    names = MessageOptions.model_fields
    given = {name: value for one in metadata for name, value in one.items() if name in names}
    try:
        return MessageOptions.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = f"metadata.{problem['loc'][0]}"
        raise InvalidRequest(f"{name}: {problem['msg']}.", param=name) from None


def build_turn_request(message: JsonObject, options: MessageOptions, offer: ToolOffer) -> TurnRequest:
    """Convert a message without a task to the request of a turn.

    Its context is the conversation.

    Raises:
        InvalidRequest: a part cannot be read, or the message is not a user's.
    """
    message_id = str(message.get("messageId", ""))
    return TurnRequest(
        messages=(Message("user", _read_content(message)),),
        message_paths=("message",),
        model=options.model or "",
        system=options.system,
        tools=offer.select(options.tool_selection, brings_tools=False),
        conversation_id=message.get("contextId") or "new",
        on_disconnect="continue",
        approval=options.approval or "never",
        code=options.code or "key",
        toolset=options.toolset,
        echo={"message_id": message_id[:_MAX_SHOWN_LENGTH]},
    )


def _read_content(message: JsonObject) -> str | list[JsonObject]:
    """Return the content of the model's message."""
    if message.get("role") != "ROLE_USER":
        raise InvalidRequest("message.role: must be ROLE_USER.", param="message.role")
    parts = [_read_part(part, f"message.parts.{n}") for n, part in enumerate(message.get("parts") or ())]
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n\n".join(part["text"] for part in parts)


def _read_part(part: JsonObject, path: str) -> JsonObject:
    """Return a part as in chat completions. Nothing is fetched."""
    match part:
        case {"text": str(text)}:
            return {"type": "text", "text": text}
        case {"data": data}:
            return {"type": "text", "text": _encode(data).decode()}
        case {"raw": str(raw)}:
            return _read_raw_file(raw, part, path)
        case {"url": str()}:
            raise UnsupportedParameter(f"{path}: files are not fetched here; send the bytes as raw.", param=path)
        case _:
            raise InvalidRequest(f"{path}: must have one of text, data and raw.", param=path)


def _read_raw_file(raw: str, part: JsonObject, path: str) -> JsonObject:
    media_type = str(part.get("mediaType", "")).partition(";")[0].strip().lower()
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{raw}"}}
    if not media_type.startswith("text/") and media_type not in _TEXT_TYPES:
        kind = media_type[:_MAX_SHOWN_LENGTH] or "no media type"
        raise UnsupportedParameter(f"{path}: a file of {kind} cannot be read; send images or text.", param=path)
    try:
        text = base64.b64decode(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path}: the file is not UTF-8.", param=path) from None
    name = str(part.get("filename", ""))
    return {"type": "text", "text": f"{name}\n\n{text}" if name else text}


def parse_answer(message: JsonObject, questions: Sequence[StoredQuestion], *, by: str) -> tuple[UUID, Answer]:
    """Read a message to a task as an answer.

    Data with `action`, and with `input_id` if there are several, is the answer itself. Other data is the content of an
    accepted answer. Text approves or declines a call, or is the value of the only field that is asked for.

    Raises:
        InvalidRequest: the message answers none of the questions.
    """
    _read_content(message)
    parts: list[JsonObject] = message.get("parts") or []
    data = next((part["data"] for part in parts if isinstance(part.get("data"), dict)), None)
    if isinstance(data, dict) and ("action" in data or "input_id" in data):
        return _parse_explicit(cast(JsonObject, data), questions, by)
    asked = questions[0]
    if isinstance(data, dict):
        return asked.id, Answer("accept", cast(JsonObject, data), by=by)
    text = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str)).strip()
    return asked.id, _parse_text(text, asked.question, by)


def _parse_explicit(data: JsonObject, questions: Sequence[StoredQuestion], by: str) -> tuple[UUID, Answer]:
    asked = questions[0]
    if (input_id := data.get("input_id")) is not None:
        found = next((question for question in questions if str(question.id) == input_id), None)
        if found is None:
            raise InvalidRequest("message.parts: input_id names no open question of this task.", param="message.parts")
        asked = found
    action = data.get("action", "accept")
    content: object = data.get("content")
    if action not in ("accept", "decline", "cancel") or not (content is None or isinstance(content, dict)):
        raise InvalidRequest(
            "message.parts: action must be accept, decline or cancel, and content an object.", param="message.parts"
        )
    accepted = cast(JsonObject, content) if isinstance(content, dict) else {}
    return asked.id, Answer(action, accepted if action == "accept" else None, by=by)


def _parse_text(text: str, question: Question, by: str) -> Answer:
    word = text.strip(" .!").lower()
    if question.kind != "question":
        if word in _YES:
            return Answer("accept", {}, by=by)
        if word in _NO:
            return Answer("decline", by=by)
        raise InvalidRequest("message.parts: answer with yes or no.", param="message.parts")
    return Answer("accept", _parse_fields(text, question.schema or {}), by=by)


def _parse_fields(text: str, schema: JsonObject) -> JsonObject:
    """Return the fields of an answer.

    The text is JSON of all, or the value of the only one.
    """
    try:
        value: object = msgspec.json.decode(text)
    except JSON_DECODE_ERRORS:
        value = None
    if isinstance(value, dict):
        return cast(JsonObject, value)
    fields: dict[str, Any] = schema.get("properties") or {}
    if len(fields) != 1:
        names = ", ".join(fields)[:_MAX_SHOWN_LENGTH]
        raise InvalidRequest(
            f"message.parts: send data with the fields that are asked for: {names}.", param="message.parts"
        )
    [(name, field)] = fields.items()
    kind: object = cast(JsonObject, field).get("type") if isinstance(field, dict) else None
    match kind:
        case "boolean" if text.lower() in _YES | _NO:
            return {name: text.lower() in _YES}
        case "integer" | "number" | "array" if value is not None:
            return {name: value}
        case _:
            return {name: text}
