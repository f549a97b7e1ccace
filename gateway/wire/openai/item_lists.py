"""Lists of stored items, in pages as OpenAI's clients read them."""

from collections.abc import Iterable
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from gateway.common.pages import MAX_PAGE_BYTES
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject


class ItemDeletion(NamedTuple):
    """Messages of a turn after the deletion of an item.

    `removed` is what was deleted, `removed_indexes` are the places of messages that are gone, `calls` ids of deleted
    calls.
    """

    messages: list[JsonObject]
    removed: list[JsonObject]
    removed_indexes: list[int]
    calls: list[str]


ItemOrder = Literal["asc", "desc"]


_NUMBERS = "item_numbers"
"""Member of a stored message with the numbers of its items.

Messages have it once an item of their turn was deleted.
"""


def build_items(turn_id: UUID, messages: Iterable[JsonObject]) -> list[JsonObject]:
    """Convert stored messages of a turn to items, oldest first.

    The number of an item is never used again after its deletion.
    """
    items: list[JsonObject] = []
    start = 0
    for message in messages:
        own = _build_message_items(message)
        numbers = message.get(_NUMBERS) or range(start, start + len(own))
        start += len(own)
        ids = (f"in_{turn_id.hex}_{number}" for number in numbers)
        items += [{"id": item_id, "status": "completed", **item} for item_id, item in zip(ids, own, strict=False)]
    return items


def _build_message_items(message: JsonObject) -> list[JsonObject]:
    if message["role"] == "tool":
        output = {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
        return [output]
    items: list[JsonObject] = []
    if message.get("content") is not None or message.get("refusal"):
        items.append({"type": "message", "role": message["role"], "content": _to_parts(message)})
    for call in message.get("tool_calls") or ():
        fields = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
        items.append({"type": "function_call", **fields})
    return items


def delete_item(turn_id: UUID, item_id: str, messages: list[JsonObject]) -> ItemDeletion | None:
    """Delete an item from the stored messages of its turn.

    The output of a call goes with the call, because model servers refuse it alone. Returns None without the item.
    """
    numbered = _number_messages(turn_id, messages)
    place = next(((m, n) for m, message in enumerate(numbered) for n, i in enumerate(message[1]) if i == item_id), None)
    if place is None:
        return None
    index, position = place
    message, _ = numbered[index]
    removed, calls, indexes = dict(message), list[str](), list[int]()
    rest = dict(message)
    numbers: list[int] = list(rest[_NUMBERS])
    del numbers[position]
    has_text = message["role"] != "tool" and len(message.get("tool_calls") or ()) < len(numbered[index][1])
    if message["role"] == "tool":
        calls.append(message["tool_call_id"])
    elif position or not has_text:
        call = message["tool_calls"][position - has_text]
        calls.append(call["id"])
        rest["tool_calls"] = [other for other in message["tool_calls"] if other["id"] != call["id"]]
        removed = {"role": message["role"], "tool_calls": [call]}
    else:
        rest["content"], removed["tool_calls"] = None, []
        rest.pop("refusal", None)
    rest[_NUMBERS] = numbers
    remaining: list[JsonObject] = []
    for other, (each, _) in enumerate(numbered):
        is_output = each["role"] == "tool" and each.get("tool_call_id") in calls
        if other == index and numbers:
            remaining.append(rest)
        elif other == index or is_output:
            indexes.append(other)
        else:
            remaining.append(each)
    return ItemDeletion(remaining, [removed], indexes, calls)


def _number_messages(turn_id: UUID, messages: list[JsonObject]) -> list[tuple[JsonObject, list[str]]]:
    """Return each message with its items' numbers in it, and their ids."""
    numbered: list[tuple[JsonObject, list[str]]] = []
    start = 0
    for message in messages:
        count = len(_build_message_items(message))
        numbers: list[int] = list(message.get(_NUMBERS) or range(start, start + count))
        start += count
        numbered.append(({**message, _NUMBERS: numbers}, [f"in_{turn_id.hex}_{number}" for number in numbers]))
    return numbered


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
