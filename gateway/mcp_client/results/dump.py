"""Results of MCP tools, bounded and sanitized."""

import msgspec
from mcp.types import CallToolResult

from gateway.common.mcp_meta import remove_connection_keys
from gateway.common.sanitize import sanitize_text
from gateway.common.structured_text import select_missing
from gateway.domain.messages import JsonObject, ToolResult, text_block


class ResultLimits(msgspec.Struct, frozen=True):
    """Limits of a result for a model.

    `max_chars` of text over all blocks, and of structured JSON; `max_data_bytes` of an image, sound or file.
    """

    max_chars: int
    max_blocks: int = 200
    max_data_bytes: int = 192 * 1024


def truncate_result(result: CallToolResult, limits: ResultLimits) -> ToolResult:
    """The result within the limits of a model.

    A note marks each cut. A last block has what only the structured result says.
    """
    blocks = _dump_blocks(result)
    content: list[JsonObject] = []
    remaining = limits.max_chars
    for block in blocks[: limits.max_blocks]:
        short_block = _truncate_block(block, max(remaining, 0), limits.max_data_bytes)
        remaining -= len(_get_text(short_block))
        content.append(short_block)
    if len(blocks) > limits.max_blocks:
        content.append(text_block(f"[cut: {len(blocks)} blocks, the first {limits.max_blocks} are shown]"))
    structured = result.structured_content
    missing = select_missing(structured, "\n".join(map(_get_text, blocks)))
    if missing is not None:
        text = sanitize_text(msgspec.json.encode(missing).decode())
        content.append(text_block(truncate_text(text, max(remaining, 0))))
    if structured is not None and len(msgspec.json.encode(structured)) > limits.max_chars:
        structured = None
    return ToolResult(outcome="error" if result.is_error else "ok", content=content, structured=structured)


def dump_result(result: CallToolResult) -> ToolResult:
    """The unchanged result. The transport has bounded its size."""
    outcome = "error" if result.is_error else "ok"
    meta = remove_connection_keys(result.meta)
    return ToolResult(outcome, _dump_blocks(result), structured=result.structured_content, meta=meta)


def _dump_blocks(result: CallToolResult) -> list[JsonObject]:
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def truncate_text(text: str, max_chars: int) -> str:
    """The text, cut with a note if it is too long."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {len(text):,} characters, the first {max_chars:,} are shown]"


def _truncate_block(block: JsonObject, max_chars: int, max_data_bytes: int) -> JsonObject:
    if block.get("type") == "text":
        return block | {"text": truncate_text(sanitize_text(block["text"]), max_chars)}
    if block.get("type") == "resource" and isinstance(block["resource"].get("text"), str):
        text = truncate_text(sanitize_text(block["resource"]["text"]), max_chars)
        return block | {"resource": block["resource"] | {"text": text}}
    data = block.get("data") or block.get("resource", {}).get("blob") or ""
    if len(data) * 3 // 4 > max_data_bytes:
        return text_block(f"[{block.get('type')} of {len(data) * 3 // 4:,} bytes left out: too large]")
    return block


def _get_text(block: JsonObject) -> str:
    return block.get("text") or block.get("resource", {}).get("text") or ""
