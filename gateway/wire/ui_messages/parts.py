"""Reads the AI SDK's UI messages as messages of the model."""

import base64
import binascii
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec

from gateway.domain.messages import JsonObject, Message, ToolCall
from gateway.wire.front_ends.sent_chat import SentMessage, parse_message_id, parse_uuid

_OUTPUT_STATES = ("output-available", "output-error", "output-denied")
DENIED_TEXT = "Error: The user did not allow this call."
_MAX_SHOWN_LENGTH = 80
_encode = msgspec.json.Encoder(order="sorted").encode


def read_ui_message(message: JsonObject, path: str, warnings: dict[str, None]) -> SentMessage:
    """Read a UI message.

    Parts of unknown types are skipped, because clients add their own.
    """
    parts = [cast(JsonObject, part) for part in message["parts"] if isinstance(part, dict)]
    role = message["role"]
    match role:
        case "assistant":
            return SentMessage(role, path, partial(_read_answer_steps, parts), get_turn_id(message))
        case "system":
            return SentMessage(role, path, lambda: [Message("system", join_text_parts(parts))])
        case _:
            return SentMessage("user", path, lambda: [_read_request(parts, warnings)])


def get_turn_id(message: JsonObject) -> UUID | None:
    """Return the last turn of an answer.

    The metadata name it; the id names the first one.
    """
    match message.get("metadata"):
        case {"turn_id": str(text)} if (turn_id := parse_uuid(text)) is not None:
            return turn_id
        case _:
            return parse_message_id(message.get("id"))


def list_approvals(message: JsonObject) -> Iterator[tuple[UUID, bool]]:
    """Yield the approvals of an answer's calls that the user decided on."""
    for part in message["parts"]:
        match part:
            case {"state": "approval-responded", "approval": {"id": str(text), "approved": bool(approved)}}:
                if (input_id := parse_uuid(text)) is not None:
                    yield input_id, approved
            case _:
                pass


def join_text_parts(parts: Iterable[JsonObject]) -> str:
    """Join the texts among parts or content blocks."""
    texts = (part.get("text") for part in parts if part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def _read_request(parts: list[JsonObject], warnings: dict[str, None]) -> Message:
    contents: list[JsonObject] = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                contents.append({"type": "text", "text": text})
            case {"type": "file", "url": str(url)}:
                contents.append(_convert_file_part(part, url, warnings))
            case _:
                pass
    if all(content["type"] == "text" for content in contents):
        return Message("user", "\n".join(content["text"] for content in contents))
    return Message("user", contents)


def _convert_file_part(part: JsonObject, url: str, warnings: dict[str, None]) -> JsonObject:
    """Convert a file.

    Images stay, texts are put in, of other files the model gets the name.
    """
    media_type = str(part.get("mediaType") or part.get("mimeType") or "")
    name = str(part.get("filename") or "file")[:_MAX_SHOWN_LENGTH]
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    is_text = media_type.startswith("text/") or media_type == "application/json"
    if is_text and (text := _decode_data_url(url)) is not None:
        return {"type": "text", "text": f"{name}\n\n{text}"}
    shown = media_type[:_MAX_SHOWN_LENGTH]
    warnings[f"The file {name!r} was left out: files of the type {shown!r} cannot be read here."] = None
    return {"type": "text", "text": f"[file {name} of the type {shown}, which was not sent to you]"}


def _decode_data_url(url: str) -> str | None:
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not comma:
        return None
    try:
        raw = base64.b64decode(data, validate=True) if head.endswith(";base64") else unquote_to_bytes(data)
        return raw.decode()
    except (binascii.Error, ValueError):
        return None


def _read_answer_steps(parts: list[JsonObject]) -> Iterator[Message]:
    """Yield the messages of each step: text and calls, then the results."""
    step: list[JsonObject] = []
    for part in parts:
        if part.get("type") == "step-start":
            yield from _read_step(step)
            step = []
        else:
            step.append(part)
    yield from _read_step(step)


def _read_step(parts: list[JsonObject]) -> Iterator[Message]:
    calls = [part for part in parts if _is_call(part)]
    text = join_text_parts(parts)
    if text or calls:
        yield Message("assistant", text or None, tuple(_read_call(part) for part in calls))
    for part in calls:
        if part["state"] in _OUTPUT_STATES:
            yield Message("tool", _format_output(part), tool_call_id=part["toolCallId"])


def _is_call(part: JsonObject) -> bool:
    kind = part.get("type")
    is_tool = isinstance(kind, str) and (kind == "dynamic-tool" or (kind.startswith("tool-") and len(kind) > 5))
    has_texts = all(isinstance(part.get(name), str) for name in ("toolCallId", "state"))
    return is_tool and has_texts and part["state"] != "input-streaming"


def _read_call(part: JsonObject) -> ToolCall:
    is_dynamic = part["type"] == "dynamic-tool"
    name = str(part.get("toolName") or "tool") if is_dynamic else part["type"].removeprefix("tool-")
    arguments = part.get("input")
    return ToolCall(part["toolCallId"], name, _encode(arguments).decode() if isinstance(arguments, dict) else "{}")


def _format_output(part: JsonObject) -> str:
    match part["state"]:
        case "output-available":
            output = part.get("output")
            return (output if isinstance(output, str) else _encode(output).decode()) or "(no output)"
        case "output-error":
            return f"Error: {part.get('errorText') or 'unknown'}"
        case _:
            return DENIED_TEXT
