"""Lists of stored items, in pages as OpenAI's clients read them."""

from collections.abc import Iterable
from typing import Literal
from uuid import UUID

import msgspec

from gateway.common.pages import MAX_PAGE_BYTES
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject

ItemOrder = Literal["asc", "desc"]


def build_items(turn_id: UUID, messages: Iterable[JsonObject]) -> list[JsonObject]:
    """Convert stored messages of a turn to items, oldest first."""
    items: list[JsonObject] = []
    for message in messages:
        if message["role"] == "tool":
            output = {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
            items.append(output)
            continue
        if message.get("content") is not None or message.get("refusal"):
            items.append({"type": "message", "role": message["role"], "content": _to_parts(message)})
        for call in message.get("tool_calls") or ():
            fields = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
            items.append({"type": "function_call", **fields})
    return [{"id": f"in_{turn_id.hex}_{n}", "status": "completed", **item} for n, item in enumerate(items)]


def build_item_page(items: list[JsonObject], *, limit: int, order: ItemOrder, after: str | None) -> JsonObject:
    """Build a page of items, which are given oldest first.

    A page ends at `limit`, or by its bytes.

    Raises:
        InvalidRequest: no item has the id `after`.
    """
    ordered = items if order == "asc" else items[::-1]
    start = 0
    if after is not None:
        start = next((n for n, item in enumerate(ordered, 1) if item["id"] == after), 0)
        if not start:
            raise InvalidRequest(f"after: the list has no item {after[:80]!r}.", param="after")
    data: list[JsonObject] = []
    size = 0
    for item in ordered[start : start + limit]:
        if size >= MAX_PAGE_BYTES:
            break
        data.append(item)
        size += len(msgspec.json.encode(item))
    bounds = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": start + len(data) < len(ordered), **bounds}


def _to_parts(message: JsonObject) -> list[JsonObject]:
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    if refusal := message.get("refusal"):
        return [{"type": "refusal", "refusal": refusal}]
    content = message["content"]
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [_to_part(part, kind) for part in content]


def _to_part(part: JsonObject, kind: str) -> JsonObject:
    if part["type"] == "text":
        return {"type": kind, "text": part["text"]}
    if part["type"] == "image_url":
        return {"type": "input_image", "detail": "auto", "image_url": part["image_url"]["url"]}
    return part
