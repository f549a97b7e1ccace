"""Results of MCP tools, bounded and sanitized."""

from typing import Any

import msgspec
from mcp.types import CallToolResult

from gateway.common.sanitize import sanitize_text
from gateway.domain.messages import JsonObject, ToolResult, text_block

_MAX_BLOCKS = 200
_MAX_BASE64_LENGTH = 256 * 1024


def truncate_result(result: CallToolResult, max_chars: int) -> ToolResult:
    """The result with at most `max_chars` of text over all blocks.

    A note marks each cut.
    """
    blocks = _dump_blocks(result)
    content: list[JsonObject] = []
    remaining = max_chars
    for block in blocks[:_MAX_BLOCKS]:
        short_block = _truncate_block(block, max(remaining, 0))
        remaining -= len(short_block.get("text") or short_block.get("resource", {}).get("text", ""))
        content.append(short_block)
    if len(blocks) > _MAX_BLOCKS:
        content.append(text_block(f"[cut: {len(blocks)} blocks, the first {_MAX_BLOCKS} are shown]"))
    structured = _drop_large_structure(result.structured_content, max_chars, content)
    return ToolResult(outcome="error" if result.is_error else "ok", content=content, structured=structured)


def dump_result(result: CallToolResult) -> ToolResult:
    """The unchanged result. The transport has bounded its size."""
    outcome = "error" if result.is_error else "ok"
    return ToolResult(outcome=outcome, content=_dump_blocks(result), structured=result.structured_content)


def _dump_blocks(result: CallToolResult) -> list[JsonObject]:
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def truncate_text(text: str, max_chars: int) -> str:
    """The text, cut with a note if it is too long."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {len(text):,} characters, the first {max_chars:,} are shown]"


def _truncate_block(block: JsonObject, max_chars: int) -> JsonObject:
    if block.get("type") == "text":
        return block | {"text": truncate_text(sanitize_text(block["text"]), max_chars)}
    if block.get("type") == "resource" and isinstance(block["resource"].get("text"), str):
        text = truncate_text(sanitize_text(block["resource"]["text"]), max_chars)
        return block | {"resource": block["resource"] | {"text": text}}
    data = block.get("data") or block.get("resource", {}).get("blob") or ""
    if len(data) > _MAX_BASE64_LENGTH:
        return text_block(f"[{block.get('type')} of {len(data) * 3 // 4:,} bytes left out: too large]")
    return block


def _drop_large_structure(value: Any, max_chars: int, content: list[JsonObject]) -> Any:
    """The structured result, or None if its JSON is too long.

    Adds a note if `content` is empty.
    """
    if value is None or len(msgspec.json.encode(value)) <= max_chars:
        return value
    if not content:
        content.append(text_block("[the structured result is left out: too large]"))
    return None
