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


def parse_stored_item_id(item_id: str) -> UUID | None:
    """Parse the id of an item to that of its turn.

    Returns None if it is no such id.
    """
    prefix, _, rest = item_id.partition("_")
    try:
        return UUID(hex=rest.partition("_")[0]) if prefix == "in" else None
    except ValueError:
        return None


class ItemPage:
    """A page of items, which ends at `limit` or by its bytes.

    Add the items in the order of the list until `is_full`. The page starts after the item `after`.
    """

    def __init__(self, *, limit: int, after: str | None = None) -> None:
        self._limit = limit
        self._after = after
        self._is_started = after is None
        self._items: list[JsonObject] = []
        self._size = 0
        self.is_full = False
        """An item did not fit."""

    def add(self, item: JsonObject) -> None:
        if not self._is_started:
            self._is_started = item["id"] == self._after
        elif len(self._items) == self._limit or self._size >= MAX_PAGE_BYTES:
            self.is_full = True
        else:
            self._items.append(item)
            self._size += len(msgspec.json.encode(item))

    def build(self) -> JsonObject:
        """Build the list object.

        Raises:
            InvalidRequest: no item has the id `after`.
        """
        if not self._is_started:
            raise InvalidRequest(f"after: the list has no item {str(self._after)[:80]!r}.", param="after")
        ids = [item["id"] for item in self._items] or [None]
        bounds = {"first_id": ids[0], "last_id": ids[-1]}
        return {"object": "list", "data": self._items, "has_more": self.is_full, **bounds}


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
