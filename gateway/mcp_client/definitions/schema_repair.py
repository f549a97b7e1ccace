"""Repairs schemas of MCP servers.

Model servers refuse a request with an invalid schema, so one tool could end every chat.
"""

import re
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import unquote

from gateway.domain.messages import JsonObject
from gateway_runtime.json_schema.rules import (
    ID_KEYWORDS,
    KEYWORD_RULES,
    SUBSCHEMA_KEYWORDS,
    SUBSCHEMA_LIST_KEYWORDS,
    SUBSCHEMA_MAP_KEYWORDS,
    TYPES,
)

_TYPE_NAMES = {name: name for name in TYPES} | {
    "bool": "boolean", "date": "string", "datetime": "string", "dict": "object", "double": "number",
    "float": "number", "int": "integer", "list": "array", "long": "integer", "map": "object", "none": "null",
    "str": "string", "text": "string", "tuple": "array",
}  # fmt: skip
_ANNOTATION_TYPES: dict[str, type] = {
    "$comment": str,
    "contentEncoding": str,
    "contentMediaType": str,
    "deprecated": bool,
    "description": str,
    "examples": list,
    "readOnly": bool,
    "title": str,
    "writeOnly": bool,
}
_NAME_PATTERNS = {
    "$id": re.compile(r"[^#]*#?"),
    "$anchor": re.compile(r"[A-Za-z_][-A-Za-z0-9._]*"),
    "$dynamicAnchor": re.compile(r"[A-Za-z_][-A-Za-z0-9._]*"),
}
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_MAX_ROOT_REFERENCES = 10


def repair_schema(schema: JsonObject) -> list[str]:
    """Repair a schema in place and return what was repaired.

    Afterwards each keyword has a value that JSON Schema 2020-12 permits, and each reference has a target. A valid
    schema stays as it is. The caller has checked the size and the depth.
    """
    problems: list[str] = []
    visited: set[int] = set()
    pending: list[tuple[str, JsonObject]] = [("", schema)]
    while pending:
        path, subschema = pending.pop()
        if id(subschema) in visited:
            continue
        visited.add(id(subschema))
        odd_keywords = [keyword for keyword, value in subschema.items() if not _is_valid(keyword, value)]
        for keyword in odd_keywords:
            _repair_keyword(subschema, keyword)
            problems.append(f"{path}.{keyword}: is not valid".lstrip("."))
        if (reference := subschema.get("$ref")) is not None:
            target = find_target(reference, schema)
            is_endless = target is subschema
            if isinstance(target, dict) and not is_endless:
                pending.append((reference, cast("JsonObject", target)))
            elif is_endless or not (isinstance(target, bool) or _is_name(reference, schema)):
                del subschema["$ref"]
                problems.append(f"{path}.$ref: refers to nothing in the schema".lstrip("."))
        pending += [(f"{path}.{name}".lstrip("."), inner) for name, inner in _list_subschemas(subschema)]
    return problems


def resolve_root(schema: JsonObject) -> JsonObject:
    """The schema with a reference at its root replaced by the target."""
    for _ in range(_MAX_ROOT_REFERENCES):
        target = find_target(schema.get("$ref"), schema)
        if not isinstance(target, dict) or target is schema:
            break
        schema = cast("JsonObject", target) | {name: value for name, value in schema.items() if name != "$ref"}
    return schema


def _is_valid(keyword: str, value: Any) -> bool:
    if keyword == "required":
        return isinstance(value, list) and _list_texts(cast("list[object]", value)) == value
    if keyword == "type":
        return value in TYPES if isinstance(value, str) else _repair_types(value) == value
    if (annotation_type := _ANNOTATION_TYPES.get(keyword)) is not None:
        return isinstance(value, annotation_type)
    if (rule := KEYWORD_RULES.get(keyword)) is not None and not rule[0](value):
        return False
    if keyword in SUBSCHEMA_KEYWORDS:
        return isinstance(value, dict | bool)
    if keyword in SUBSCHEMA_MAP_KEYWORDS:
        return all(isinstance(member, dict | bool) for member in value.values())
    if keyword in SUBSCHEMA_LIST_KEYWORDS:
        return all(isinstance(member, dict | bool) for member in value)
    return keyword not in _NAME_PATTERNS or _NAME_PATTERNS[keyword].fullmatch(value) is not None


def _repair_keyword(schema: JsonObject, keyword: str) -> None:
    """Replace an invalid value of a keyword, or delete the keyword."""
    value = schema.pop(keyword)
    if keyword == "type":
        types, names = _repair_types(value), cast("list[object]", value) if isinstance(value, list) else [value]
        if types and len(types) == len(set(map(str, names))):
            schema["type"] = types if isinstance(value, list) else types[0]
    elif keyword in _BOUNDS and value is True:  # draft 4
        if isinstance(schema.get(_BOUNDS[keyword]), int | float):
            schema[keyword] = schema.pop(_BOUNDS[keyword])
    elif keyword == "items" and isinstance(value, list):  # until draft 2019-09
        if value:
            schema["prefixItems"] = [_as_schema(member) for member in cast("list[object]", value)]
        if isinstance(schema.get("additionalItems"), dict | bool):
            schema["items"] = schema.pop("additionalItems")
    elif keyword == "required" and isinstance(value, list):
        schema["required"] = _list_texts(cast("list[object]", value))
    elif keyword in SUBSCHEMA_MAP_KEYWORDS and isinstance(value, dict):
        schema[keyword] = {name: _as_schema(member) for name, member in cast("JsonObject", value).items()}
    elif keyword in SUBSCHEMA_LIST_KEYWORDS and isinstance(value, list) and value:
        schema[keyword] = [_as_schema(member) for member in cast("list[object]", value)]


def _as_schema(value: object) -> object:
    """The value if it is a schema, else one that accepts everything."""
    return cast("object", value) if isinstance(value, dict | bool) else {}


def _list_texts(values: list[object]) -> list[str]:
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _repair_types(value: object) -> list[str]:
    """The types that are known, also by another name, each once."""
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    types = (name if name in TYPES else _TYPE_NAMES.get(name.lower()) for name in names if isinstance(name, str))
    return list(dict.fromkeys(name for name in types if name is not None))


def _list_subschemas(schema: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    for keyword, value in schema.items():
        if keyword in SUBSCHEMA_KEYWORDS:
            members = [(keyword, value)]
        elif keyword in SUBSCHEMA_MAP_KEYWORDS:
            members = [(f"{keyword}.{name}", member) for name, member in value.items()]
        elif keyword in SUBSCHEMA_LIST_KEYWORDS:
            members = [(f"{keyword}.{index}", member) for index, member in enumerate(value)]
        else:
            continue
        yield from ((path, member) for path, member in members if isinstance(member, dict))


def _is_name(reference: str, schema: JsonObject) -> bool:
    """Whether a reference leads to an id or an anchor."""
    base, _, anchor = reference.partition("#")
    names = set(_list_names(schema))
    return (not base or base in names) and (not anchor or anchor.startswith("/") == bool(base) or anchor in names)


def _list_names(value: object) -> Iterator[object]:
    """The ids and anchors at any depth."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            members = cast("dict[str, object]", item)
            yield from (members[key] for key in ID_KEYWORDS if isinstance(members.get(key), str))
            pending.extend(members.values())
        elif isinstance(item, list):
            pending.extend(cast("list[object]", item))


def find_target(reference: object, root: JsonObject) -> object:
    """The value that a JSON pointer leads to; None without one."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    value: Any = root
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = cast("JsonObject", value).get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(cast("list[Any]", value)):
            value = cast("list[Any]", value)[int(name)]
        else:
            return None
    return value
