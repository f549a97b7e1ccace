"""Limits on JSON text that are checked before it is decoded."""

import json

import msgspec

MAX_DEPTH = 120
MAX_PROTOCOL_ITEMS = 1_000
"""Maximum items of an MCP message beside a tool's arguments."""
_SEPARATORS = b",:[{"
_TO_SQUARE_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class JsonLimitExceeded(ValueError):
    """JSON with more items or levels than allowed. The message is public."""


class TooManyItems(JsonLimitExceeded):
    """JSON with more items than allowed."""


class TooDeep(JsonLimitExceeded):
    """JSON that is nested more deeply than allowed."""


def check_json(text: bytes, *, max_items: int, max_depth: int = MAX_DEPTH) -> int:
    """Check the numbers of items and levels; return the number of items.

    Separators outside of strings are counted: commas, colons and opening brackets. An array of n numbers has n items,
    an object of n numbers has 2n. The text need not be valid JSON. It is scanned a fixed number of times by C code, and
    no object is made for an item. The result is an upper bound if it is far below the limits.

    Raises:
        TooManyItems: there are more than `max_items`.
        TooDeep: there are more than `max_depth` levels.
        UnicodeDecodeError: the text is neither UTF-8 nor UTF-16 nor UTF-32.
    """
    if b"\x00" in text:  # only UTF-16 and UTF-32 contain it, where a byte of a letter may equal a quote
        text = text.decode(json.detect_encoding(text)).encode()
    items = _count_separators(text)
    if items > max_items or text.count(b"[") + text.count(b"{") > max_depth:
        text = _remove_strings(text, max_items)
        items = _count_separators(text)
        if items > max_items:
            raise TooManyItems(f"The JSON has more than {max_items:,} values.")
        _check_depth(text, max_depth)
    return items


def _count_separators(text: bytes) -> int:
    return len(text) - len(text.translate(None, _SEPARATORS))


def _remove_strings(text: bytes, max_items: int) -> bytes:
    """Return the text without strings.

    Every string but one follows a separator, so more strings than that are too many items.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    max_quotes = 2 * (max_items + 1)
    parts = text.split(b'"', max_quotes + 1)
    if len(parts) > max_quotes + 1:
        raise TooManyItems(f"The JSON has more than {max_items:,} values.")
    return b"".join(parts[::2])


def _check_depth(text: bytes, max_depth: int) -> None:
    """Remove the innermost brackets until none remain."""
    brackets = text.translate(_TO_SQUARE_BRACKETS, _ALL_BUT_BRACKETS)
    for _ in range(max_depth):
        if not brackets:
            return
        inner, brackets = brackets, brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
    if brackets.count(b"[") > 0:
        raise TooDeep(f"The JSON is nested more than {max_depth} levels deep, or its brackets do not match.")


class _McpMessage(msgspec.Struct):
    method: str
    params: dict[str, msgspec.Raw]


_decode_message = msgspec.json.Decoder(_McpMessage).decode


def check_mcp_message(text: bytes, items: int) -> None:
    """Check that most items of a message are arguments of a tool.

    `items` is the number of items in `text`. The MCP SDK validates every other field by its type and describes every
    problem that it finds, which takes microseconds and hundreds of bytes for each.

    Raises:
        TooManyItems: more than `MAX_PROTOCOL_ITEMS` are elsewhere.
    """
    if items <= MAX_PROTOCOL_ITEMS:
        return
    try:
        message = _decode_message(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = None
    if message is not None and message.method == "tools/call" and "arguments" in message.params:
        items -= check_json(bytes(message.params["arguments"]), max_items=items)
    if items > MAX_PROTOCOL_ITEMS:
        raise TooManyItems(f"The message has more than {MAX_PROTOCOL_ITEMS:,} values beside the arguments of a tool.")
