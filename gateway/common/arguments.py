"""Normal form of the arguments of tool calls."""

import unicodedata
from typing import Any, cast

import msgspec

from gateway.domain.messages import JsonObject

_encode = msgspec.json.Encoder(order="deterministic").encode
_MAX_EXACT_INTEGER = 2**53


def normalize_arguments(arguments: JsonObject | str, schema: JsonObject) -> bytes:
    """Encode arguments so that equal ones are equal bytes.

    The order of fields, the form of numbers (`1.0`), and Unicode forms do not matter; nor does a field with the
    default of the schema, which may be left out. Arguments that are no JSON object are compared as text.
    """
    if isinstance(arguments, str):
        return arguments.strip().encode()
    properties = schema.get("properties")
    definitions: JsonObject = cast("JsonObject", properties) if isinstance(properties, dict) else {}
    normalized = {name: _normalize(value) for name, value in arguments.items()}
    return _encode({name: value for name, value in normalized.items() if not _is_default(value, definitions.get(name))})


def _is_default(value: Any, definition: Any) -> bool:
    if not isinstance(definition, dict) or "default" not in definition:
        return False
    return _encode(value) == _encode(_normalize(cast("JsonObject", definition)["default"]))


def _normalize(value: Any) -> Any:
    match value:
        case dict():
            return {unicodedata.normalize("NFC", name): _normalize(v) for name, v in cast("JsonObject", value).items()}
        case list():
            return [_normalize(item) for item in cast("list[Any]", value)]
        case str():
            return unicodedata.normalize("NFC", value)
        case float() if value.is_integer() and abs(value) < _MAX_EXACT_INTEGER:
            return int(value)
        case _:
            return value
