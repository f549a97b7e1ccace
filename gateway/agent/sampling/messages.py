"""Conversion between MCP's sampling format and model calls."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from gateway.agent.sampling.limits import SamplingRefused
from gateway.domain.images import IMAGE_TYPES
from gateway.domain.messages import (
    JSON_DECODE_ERRORS,
    JsonObject,
    Message,
    Parameters,
    ToolCall,
    ToolChoice,
    ToolSpec,
    text_block,
)
from gateway_runtime.json_schema.validation import MAX_DEPTH, exceeds_depth

_MAX_REQUEST_BYTES = 1024 * 1024
_MAX_MESSAGES, _MAX_TOOLS, _MAX_STOPS = 200, 64, 4
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STOP_REASONS = {"stop": "endTurn", "length": "maxTokens", "tool_calls": "toolUse"}


class SamplingPrompt(msgspec.Struct, frozen=True):
    """Prompt of a server for the model."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice | None
    parameters: Parameters


def parse_sampling_request(params: JsonObject, *, max_tokens: int, sees_images: bool) -> SamplingPrompt:
    """Parse the parameters of `sampling/createMessage`, in MCP's format.

    Raises:
        SamplingRefused: the request is too large, or has something that the model cannot get.
    """
    if exceeds_depth(params):
        raise SamplingRefused(f"it is nested more than {MAX_DEPTH} deep")
    if len(msgspec.json.encode(params)) > _MAX_REQUEST_BYTES:
        raise SamplingRefused(f"it has more than {_MAX_REQUEST_BYTES:,} bytes")
    sent = params["messages"]
    if not 0 < len(sent) <= _MAX_MESSAGES:
        raise SamplingRefused(f"it must have 1 to {_MAX_MESSAGES} messages")
    system = params.get("systemPrompt")
    messages = [Message("system", system)] if system else []
    for message in sent:
        messages += _parse_message(message, sees_images=sees_images)
    tools = _parse_tools(params.get("tools") or ())
    stops = tuple(params.get("stopSequences") or ())[:_MAX_STOPS]
    parameters = Parameters(
        max_tokens=max(1, min(params["maxTokens"], max_tokens)),
        temperature=params.get("temperature"),
        stop=stops or None,
    )
    choice: JsonObject = params.get("toolChoice") or {}
    return SamplingPrompt(tuple(messages), tools, (choice.get("mode") or "auto") if tools else None, parameters)


def _parse_tools(definitions: Sequence[JsonObject]) -> tuple[ToolSpec, ...]:
    names = [definition["name"] for definition in definitions]
    if len(names) > _MAX_TOOLS or len(set(names)) < len(names) or not all(map(_TOOL_NAME.fullmatch, names)):
        raise SamplingRefused(f"it may have at most {_MAX_TOOLS} tools, with distinct names that fit the model")
    return tuple(
        ToolSpec(tool["name"], "", tool["name"], tool.get("description") or "", tool["inputSchema"], client=True)
        for tool in definitions
    )


def _parse_message(message: JsonObject, *, sees_images: bool) -> list[Message]:
    """Convert a message; each tool result becomes a message."""
    content = message["content"]
    blocks = cast("list[JsonObject]", content if isinstance(content, list) else [content])
    results = [_parse_tool_result(block) for block in blocks if block["type"] == "tool_result"]
    calls = tuple(
        ToolCall(block["id"], block["name"], msgspec.json.encode(block["input"]).decode())
        for block in blocks
        if block["type"] == "tool_use"
    )
    shown = [block for block in blocks if block["type"] not in ("tool_use", "tool_result")]
    parts = [_parse_part(block, sees_images=sees_images) for block in shown]
    is_text = all(part["type"] == "text" for part in parts)
    body = "\n".join(part["text"] for part in parts) if is_text else parts
    if message["role"] == "assistant":
        if results or not is_text:
            raise SamplingRefused("a message of the assistant may have text and calls of tools only")
        return [Message("assistant", cast("str", body) or None, tool_calls=calls)]
    if calls:
        raise SamplingRefused("only the assistant may call tools")
    return results + ([Message("user", body)] if parts else [])


def _parse_tool_result(block: JsonObject) -> Message:
    texts = [part["text"] for part in block.get("content") or () if part["type"] == "text"]
    if not texts and block.get("structuredContent") is not None:
        texts = [msgspec.json.encode(block["structuredContent"]).decode()]
    return Message("tool", "\n".join(texts), tool_call_id=block["toolUseId"])


def _parse_part(block: JsonObject, *, sees_images: bool) -> JsonObject:
    if block["type"] == "text":
        return text_block(block["text"])
    if block["type"] == "image" and sees_images and block["mimeType"] in IMAGE_TYPES:
        return {"type": "image_url", "image_url": {"url": f"data:{block['mimeType']};base64,{block['data']}"}}
    raise SamplingRefused(f"the model cannot get content of the type {block['type']!r}")


def build_sampling_result(
    model: str, text: str, calls: Iterable[ToolCall], finish_reason: str, *, has_tools: bool
) -> JsonObject:
    """Build the result of `sampling/createMessage`, in MCP's format.

    Raises:
        SamplingRefused: the model's calls of the server's tools cannot be used.
    """
    content: list[JsonObject] = [text_block(text)] if text else []
    content += [_build_tool_use(call) for call in calls]
    return {
        "role": "assistant",
        "model": model,
        "content": content if has_tools else text_block(text),
        "stopReason": _STOP_REASONS.get(finish_reason, finish_reason),
    }


def _build_tool_use(call: ToolCall) -> JsonObject:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except JSON_DECODE_ERRORS:
        arguments = None
    if call.problem or arguments is None:
        raise SamplingRefused("the model called a tool with arguments that cannot be read")
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
