"""Reads JSON-RPC messages that are not quite valid.

Servers answer with texts as errors, without a result, in batches, or after a byte order mark. The SDK refuses such a
message, and its call would be told that the answer cannot be read.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import mcp.client.streamable_http
import mcp.types as t
import msgspec

from gateway.domain.messages import JsonObject

_BOM = "\ufeff"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_BATCH = 1_000
_DECODER = json.JSONDecoder()


def parse_messages(data: bytes | str) -> list[t.JSONRPCMessage]:
    """Parse one message, or several.

    Bytes that are no UTF-8 become replacement characters.

    Raises:
        ValueError: it contains no message.
    """
    try:
        return [t.jsonrpc_message_adapter.validate_json(data, by_name=False)]
    except ValueError as error:
        messages = list(_repair_messages(data))
        if not messages:
            raise error
        return messages


class LenientAdapter:
    """Stands in for the SDK's adapter of messages over HTTP."""

    def validate_json(self, data: bytes | str, **_options: Any) -> t.JSONRPCMessage:
        """Parse the last message; an answer follows what belongs to it.

        Raises:
            ValueError: it contains no message.
        """
        return parse_messages(data)[-1]


def accept_odd_messages() -> None:
    """Make the SDK read messages over HTTP leniently.

    Its client has no parameter for that.
    """
    mcp.client.streamable_http.jsonrpc_message_adapter = LenientAdapter()  # type: ignore[assignment] # pyright: ignore


def _repair_messages(data: bytes | str) -> Iterator[t.JSONRPCMessage]:
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    text = text.lstrip(f"{_BOM} \t\r\n")
    has_surrogates = _ESCAPED_SURROGATE.search(text) is not None
    for value in _decode_values(text):
        items = cast("list[Any]", value)[:_MAX_BATCH] if isinstance(value, list) else [value]
        for item in items:
            message = _repair_message(cast("JsonObject", item)) if isinstance(item, dict) else None
            if message is None:
                continue
            try:
                yield t.jsonrpc_message_adapter.validate_python(
                    _replace_surrogates(message) if has_surrogates else message, by_name=False
                )
            except (ValueError, RecursionError):
                continue


def _decode_values(text: str) -> Iterator[Any]:
    """The JSON values at the start of a text."""
    position = 0
    for _ in range(_MAX_BATCH):
        if position >= len(text):
            return
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        yield value
        while position < len(text) and text[position].isspace():
            position += 1


def _repair_message(message: JsonObject) -> JsonObject | None:
    """A valid message with the same meaning, or None."""
    if isinstance(message.get("method"), str):
        return {name: value for name, value in message.items() if value is not None or name == "id"} | {
            "jsonrpc": "2.0"
        }
    request_id = message.get("id")
    if isinstance(request_id, float) and request_id.is_integer():
        request_id = int(request_id)
    if isinstance(request_id, bool) or not isinstance(request_id, int | str):
        return None
    answer: JsonObject = {"jsonrpc": "2.0", "id": request_id}
    error, result = message.get("error"), message.get("result")
    if error is not None and result is None:
        return answer | {"error": _repair_error(error)}
    if "result" in message:
        # Content of a call; other methods have no such member.
        return answer | {
            "result": {} if result is None else result if isinstance(result, dict) else {"content": result}
        }
    return answer | {"error": {"code": t.PARSE_ERROR, "message": "Failed to parse the answer: it has no result"}}


def _repair_error(error: Any) -> JsonObject:
    if not isinstance(error, dict):
        return {"code": t.INTERNAL_ERROR, "message": error if isinstance(error, str) else _encode(error)}
    own = cast("JsonObject", error)
    code, message = own.get("code"), own.get("message")
    is_number = isinstance(code, int) and not isinstance(code, bool)
    data = own.get("data")
    if not is_number:
        data = {"code": code, "data": data} if code is not None else data
    return {
        "code": code if is_number else t.INTERNAL_ERROR,
        "message": message if isinstance(message, str) else _encode(own if message is None else message),
    } | ({} if data is None else {"data": data})


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _replace_surrogates(value: Any) -> Any:
    """The value with a replacement character for each half of a pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        members = cast("JsonObject", value).items()
        return {_replace_surrogates(name): _replace_surrogates(member) for name, member in members}
    return value
