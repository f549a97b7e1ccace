"""What an MCP server answered, as the rest of the gateway carries it: bounded, and without control characters."""

from typing import Any

import msgspec
from mcp.types import CallToolResult

from gateway.domain.messages import JsonObject, ToolResult, text_block
from gateway.mcp_client.sanitize import sanitize_text

_MOST_BLOCKS = 200
_MOST_BASE64 = 256 * 1024


def reduce_result(result: CallToolResult, most_chars: int) -> ToolResult:
    """The result with its text cut, all in all, to `most_chars`, each cut told in its place."""
    blocks: list[JsonObject] = [
        block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content
    ]
    content: list[JsonObject] = []
    left = most_chars
    for block in blocks[:_MOST_BLOCKS]:
        kept = _block(block, left)
        left -= len(kept.get("text") or kept.get("resource", {}).get("text", ""))
        content.append(kept)
    if len(blocks) > _MOST_BLOCKS:
        content.append(text_block(f"[cut: {len(blocks)} blocks, the first {_MOST_BLOCKS} are shown]"))
    structured = _structured(result.structured_content, most_chars, content)
    return ToolResult(outcome="error" if result.is_error else "ok", content=content, structured=structured)


def _block(block: JsonObject, left: int) -> JsonObject:
    if block.get("type") == "text":
        return block | {"text": _cut(block["text"], max(left, 0))}
    if block.get("type") == "resource" and isinstance(block["resource"].get("text"), str):
        return block | {"resource": block["resource"] | {"text": _cut(block["resource"]["text"], max(left, 0))}}
    data = block.get("data") or block.get("resource", {}).get("blob") or ""
    if len(data) > _MOST_BASE64:
        return text_block(f"[{block.get('type')} of {len(data) * 3 // 4:,} bytes left out: too large]")
    return block


def _cut(text: str, most: int) -> str:
    text = sanitize_text(text)
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[cut: {len(text):,} characters, the first {most:,} are shown]"


def _structured(value: Any, most_chars: int, content: list[JsonObject]) -> Any:
    if value is None or len(msgspec.json.encode(value)) <= most_chars:
        return value
    if not content:
        content.append(text_block("[the structured result is left out: too large]"))
    return None
