"""Messages of the model, read from Anthropic's content blocks."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, ToolCall
from gateway.wire.client_tools import CLIENT_CALL_ID

_SUPPORTED_BLOCKS = (
    "text, image, document, search_result, tool_use, tool_result, thinking, mcp_tool_use, mcp_tool_result"
)
_IGNORED_BLOCKS = ("thinking", "redacted_thinking", "fallback", "tool_reference", "mcp_tool_listing")
"""Blocks that change nothing here, for example thoughts of an earlier answer."""
_MAX_SHOWN_LENGTH = 80
_encode = msgspec.json.Encoder(order="sorted").encode


def to_named_messages(bodies: list[tuple[str, str | list[JsonObject]]]) -> list[tuple[Message, str]]:
    """Convert pairs of role and content to messages with their paths.

    With calls of the client's own tools that this gateway has made, the gateway restores the calls of its own tools
    beside them, so their blocks are skipped here.

    Raises:
        InvalidRequest: a block cannot be served. The message names it.
    """
    blocks = [block for _, content in bodies if isinstance(content, list) for block in content]
    reader = _BlockReader(
        skips_hosted_calls=any(
            block.get("type") == "tool_use" and CLIENT_CALL_ID.fullmatch(str(block.get("id"))) for block in blocks
        )
    )
    messages: list[tuple[Message, str]] = []
    for number, (role, content) in enumerate(bodies):
        name = f"messages.{number}"
        messages += [(message, name) for message in reader.read_message(role, content, f"{name}.content")]
    return messages


def read_text(content: object, path: str) -> str:
    """Join the text blocks of a content that may be nothing else.

    Raises:
        InvalidRequest: there is another block.
    """
    texts: list[str] = []
    for number, block in enumerate(_list_blocks(content, path)):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise _refuse(block, f"{path}.{number}", "text alone can stand here")
    return "\n\n".join(texts)


class _BlockReader:
    """Reads the blocks of one request."""

    def __init__(self, *, skips_hosted_calls: bool) -> None:
        self._skips_hosted_calls = skips_hosted_calls

    def read_message(self, role: str, content: str | list[JsonObject], path: str) -> Iterable[Message]:
        """Return the messages of a body."""
        if role == "assistant":
            return self.read_answer(content, path)
        return [Message("system", read_text(content, path))] if role == "system" else self.read_request(content, path)

    def read_request(self, content: str | list[JsonObject], path: str) -> Iterator[Message]:
        """Yield results of tools, and then the user's message.

        Images of results stand in the user's message, because a model's server takes texts alone in results.
        """
        parts: list[JsonObject] = []
        has_results = False
        for number, block in enumerate(_list_blocks(content, path)):
            block_path = f"{path}.{number}"
            match block:
                case {"type": "tool_result", "tool_use_id": str(call_id)}:
                    has_results = True
                    inner = list(_read_parts(block.get("content"), f"{block_path}.content"))
                    text = _join_texts(inner) or "(no output)"
                    prefix = "Error: " if block.get("is_error") is True else ""
                    yield Message("tool", prefix + text, tool_call_id=call_id)
                    parts += [part for part in inner if part["type"] != "text"]
                case {"type": "mcp_tool_result"}:
                    pass
                case _:
                    parts += _read_part(block, block_path)
        if parts or not has_results:
            is_text = all(part["type"] == "text" for part in parts)
            yield Message("user", _join_texts(parts) if is_text else parts)

    def read_answer(self, content: str | list[JsonObject], path: str) -> Iterator[Message]:
        """Yield the assistant's messages and results of the gateway's tools."""
        texts: list[str] = []
        calls: list[ToolCall] = []
        for number, block in enumerate(_list_blocks(content, path)):
            match block:
                case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                    calls.append(ToolCall(call_id, name, _format_input(block, f"{path}.{number}")))
                case {"type": "mcp_tool_use" | "server_tool_use", "id": str(call_id), "name": str(name)}:
                    if not self._skips_hosted_calls:
                        calls.append(ToolCall(call_id, name, _format_input(block, f"{path}.{number}")))
                case {"type": "mcp_tool_result", "tool_use_id": str(call_id)}:
                    if self._skips_hosted_calls:
                        continue
                    if texts or calls:
                        yield _build_answer(texts, calls)
                        texts, calls = [], []
                    text = _join_texts(_read_parts(block.get("content"), f"{path}.{number}.content"))
                    yield Message("tool", text or "(no output)", tool_call_id=call_id)
                case {"type": str(kind)} if kind.endswith("_tool_result"):
                    pass  # of a tool that runs at Anthropic
                case _:
                    texts += [_join_texts([part]) for part in _read_part(block, f"{path}.{number}")]
        if texts or calls:
            yield _build_answer(texts, calls)


def _build_answer(texts: list[str], calls: list[ToolCall]) -> Message:
    return Message("assistant", "\n\n".join(text for text in texts if text) or None, tuple(calls))


def _list_blocks(content: object, path: str) -> list[JsonObject]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if isinstance(content, list) and all(isinstance(block, dict) for block in cast(list[object], content)):
        return cast(list[JsonObject], content)
    raise InvalidRequest(f"{path}: must be a text or a list of content blocks.", param=path)


def _read_parts(content: object, path: str) -> Iterator[JsonObject]:
    for number, block in enumerate(_list_blocks(content, path)):
        yield from _read_part(block, f"{path}.{number}")


def _read_part(block: JsonObject, path: str) -> Iterator[JsonObject]:
    """Yield the parts of a block, as in chat completions."""
    match block:
        case {"type": "text", "text": str(text)}:
            if text:
                yield {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": str(kind), "data": str(data)}}:
            yield {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            yield {"type": "image_url", "image_url": {"url": url}}
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            yield {"type": "text", "text": _add_title(block, text)}
        case {"type": "document", "source": {"type": "content", "content": content}}:
            yield from _read_parts(content, f"{path}.source.content")
        case {"type": "search_result", "content": content}:
            yield {"type": "text", "text": _add_title(block, read_text(content, f"{path}.content"))}
        case {"type": "compaction"}:  # stands for the messages before it; its text may be encrypted
            if text := read_text(block.get("content"), f"{path}.content"):
                yield {"type": "text", "text": text}
        case {"type": "image" | "document"}:
            raise _refuse(block, path, "send images as base64 or url, and documents as text")
        case {"type": str(kind)} if kind in _IGNORED_BLOCKS:
            pass
        case _:
            raise _refuse(block, path, f"supported: {_SUPPORTED_BLOCKS}")


def _add_title(block: JsonObject, text: str) -> str:
    title = block.get("title")
    return f"{title}\n\n{text}" if isinstance(title, str) and title else text


def _join_texts(parts: Iterator[JsonObject] | list[JsonObject]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _format_input(block: JsonObject, path: str) -> str:
    arguments: Any = block.get("input")
    if arguments is None:
        return "{}"
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{path}.input: must be an object.", param=f"{path}.input")
    return _encode(arguments).decode()


def _refuse(block: JsonObject, path: str, advice: str) -> InvalidRequest:
    kind = str(block.get("type"))[:_MAX_SHOWN_LENGTH]
    return InvalidRequest(f"{path}: a block of the type {kind!r} cannot be read here; {advice}.", param=path)
