"""Size and form of untrusted JSON schemas, checked in linear time.

jsonschema's own check evaluates the metaschema, which takes about a millisecond for each subschema.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

MAX_DEPTH = 100
MAX_SCHEMA_NODES = 10_000
"""Objects, arrays and values in a schema."""
MAX_SCHEMA_CHARS = 256 * 1024
"""Characters of all texts and names in a schema."""

TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
SUBSCHEMA_KEYWORDS = {
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
}
SUBSCHEMA_MAP_KEYWORDS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
SUBSCHEMA_LIST_KEYWORDS = {"allOf", "anyOf", "oneOf", "prefixItems"}
ID_KEYWORDS = ("$id", "id", "$anchor", "$dynamicAnchor")


class SchemaInvalid(Exception):
    """A schema is malformed; `str()` names the place and what is expected."""


class SchemaTooLarge(SchemaInvalid):
    """A schema is larger or nested more deeply than is checked."""


class ValueSize(NamedTuple):
    """Size of a JSON value.

    `nodes` are objects, arrays and values, `chars` the characters of texts and names.
    """

    nodes: int
    chars: int


def measure_value(value: object, *, max_nodes: int = MAX_SCHEMA_NODES, max_chars: int = MAX_SCHEMA_CHARS) -> ValueSize:
    """Return the size of a JSON value.

    Stops at the first limit that it exceeds.

    Raises:
        SchemaTooLarge: it has more nodes or characters, or is nested too deeply.
    """
    nodes, chars, level = 1, 0, [value]
    for _ in range(MAX_DEPTH + 1):
        members: list[object] = []
        for item in level:
            if isinstance(item, dict):
                mapping = cast("dict[str, object]", item)
                nodes += len(mapping)
                chars += sum(map(len, mapping))
                members.extend(mapping.values() if nodes <= max_nodes else ())
            elif isinstance(item, list):
                values = cast("list[object]", item)
                nodes += len(values)
                members.extend(values if nodes <= max_nodes else ())
            elif isinstance(item, str):
                chars += len(item)
            if nodes > max_nodes or chars > max_chars:
                raise SchemaTooLarge(f"it has more than {max_nodes:,} values or {max_chars:,} characters")
        if not members:
            return ValueSize(nodes, chars)
        level = members
    raise SchemaTooLarge(f"it is nested too deeply: more than {MAX_DEPTH} levels")


def check_keywords(schema: object) -> bool:
    """Check the values of the keywords that a validator evaluates.

    Return whether a subschema has an id or an anchor, to which references are slower. Keywords of unknown names, and
    what is below them, are not checked. The caller has checked the size.

    Raises:
        SchemaInvalid: a keyword has a value of another type.
    """
    has_ids = False
    pending: list[tuple[str, object]] = [("", schema)]
    while pending:
        path, subschema = pending.pop()
        if isinstance(subschema, bool):
            continue
        if not isinstance(subschema, dict):
            raise SchemaInvalid(f"{path or 'it'}: must be an object or a boolean")
        keywords = cast("dict[str, object]", subschema)
        has_ids = has_ids or (path != "" and any(name in keywords for name in ID_KEYWORDS))
        for keyword, value in keywords.items():
            keyword_path = f"{path}.{keyword}" if path else keyword
            if (rule := KEYWORD_RULES.get(keyword)) is not None and not rule[0](value):
                raise SchemaInvalid(f"{keyword_path}: must be {rule[1]}")
            pending.extend(_list_subschemas(keyword, value, keyword_path))
    return has_ids


def _list_subschemas(keyword: str, value: object, path: str) -> Iterator[tuple[str, object]]:
    if keyword in SUBSCHEMA_KEYWORDS:
        yield path, value
    elif keyword in SUBSCHEMA_MAP_KEYWORDS:
        for name, subschema in cast("dict[str, object]", value).items():
            yield f"{path}.{name}", subschema
    elif keyword in SUBSCHEMA_LIST_KEYWORDS:
        for index, subschema in enumerate(cast("list[object]", value)):
            yield f"{path}.{index}", subschema


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer() and value >= 0
    return _is_number(value) and cast(int, value) >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value))


def _is_type(value: object) -> bool:
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _make_rules() -> dict[str, tuple[Callable[[object], bool], str]]:
    rules: dict[str, tuple[Callable[[object], bool], str]] = {
        "type": (_is_type, "a type of JSON Schema or a list of types"),
        "enum": (lambda value: isinstance(value, list), "a list"),
        "uniqueItems": (lambda value: isinstance(value, bool), "a boolean"),
        "multipleOf": (lambda value: _is_number(value) and cast(float, value) > 0, "a positive number"),
        "required": (_is_text_list, "a list of names"),
        "dependentRequired": (
            lambda value: (
                isinstance(value, dict) and all(map(_is_text_list, cast("Mapping[str, object]", value).values()))
            ),
            "an object of lists of names",
        ),
    }
    for keyword in ("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"):
        rules[keyword] = _is_number, "a number"
    for noun in ("Length", "Items", "Properties", "Contains"):
        rules[f"max{noun}"] = rules[f"min{noun}"] = _is_size, "a whole number that is not negative"
    for keyword in ("pattern", "format", "$ref", "$dynamicRef", "$id", "$schema", "$anchor", "$dynamicAnchor"):
        rules[keyword] = _is_text, "a text"
    for keyword in SUBSCHEMA_MAP_KEYWORDS:
        rules[keyword] = lambda value: isinstance(value, dict), "an object of schemas"
    for keyword in SUBSCHEMA_LIST_KEYWORDS:
        rules[keyword] = (
            lambda value: isinstance(value, list) and bool(cast("list[object]", value)),
            "a list of schemas",
        )
    return rules


KEYWORD_RULES = _make_rules()
"""Keywords with a check of their value.

The text describes a valid value.
"""
