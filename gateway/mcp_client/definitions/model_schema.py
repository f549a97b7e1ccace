"""Adapts schemas of tools to what all model servers take."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from gateway.domain.messages import JsonObject
from gateway.mcp_client.definitions.schema_repair import find_target, resolve_root
from gateway_runtime.json_schema.rules import SUBSCHEMA_KEYWORDS, SUBSCHEMA_LIST_KEYWORDS, SUBSCHEMA_MAP_KEYWORDS

_BOOLEAN_KEYWORDS = ("additionalProperties", "unevaluatedItems", "unevaluatedProperties")
_ROOT_KEYWORDS = ("allOf", "anyOf", "const", "enum", "not", "oneOf")
"""Keywords that some model servers refuse at the root."""
_MAX_BRANCHES = 50
_MAX_NOTE_LENGTH = 1_000


def adapt_for_models(schema: JsonObject) -> JsonObject:
    """Adapt the schema of a tool's arguments to all model servers.

    Some refuse a schema without properties, a reference or alternatives at its root, a boolean in place of a schema, or
    a pattern that is not valid. Servers still check the arguments by their own schema.
    """
    adapted = _adapt(_flatten_root(resolve_root(schema)))
    adapted.setdefault("properties", {})
    # A fixed order of the keywords keeps the prefix of the prompt the same, which model servers cache.
    return {keyword: adapted[keyword] for keyword in sorted(adapted)}


def _flatten_root(schema: JsonObject) -> JsonObject:
    """Return the schema with the properties of its alternatives as its own.

    Its description tells what the schema no longer says.
    """
    if not any(keyword in schema for keyword in _ROOT_KEYWORDS):
        return schema
    flat = {keyword: value for keyword, value in schema.items() if keyword not in _ROOT_KEYWORDS}
    properties: JsonObject = dict(schema.get("properties") or {})
    required: list[str] = list(schema.get("required") or [])
    for keyword in ("allOf", "anyOf", "oneOf"):
        listed: list[Any] = schema.get(keyword) or []
        branches = [_resolve_branch(branch, schema) for branch in listed[:_MAX_BRANCHES]]
        for branch in branches:
            for name, value in cast("JsonObject", branch.get("properties") or {}).items():
                properties.setdefault(name, value)
        required += _list_required(branches, is_all=keyword == "allOf")
    flat["properties"] = properties
    if required := [name for name in dict.fromkeys(required) if name in properties]:
        flat["required"] = required
    dropped = {keyword: schema[keyword] for keyword in _ROOT_KEYWORDS if keyword in schema and keyword != "allOf"}
    note = f"The arguments must also match {json.dumps(dropped, ensure_ascii=False)}"
    if dropped and len(note) <= _MAX_NOTE_LENGTH:
        own = schema.get("description")
        flat["description"] = f"{own}\n{note}" if isinstance(own, str) and own else note
    return flat


def _resolve_branch(branch: Any, root: JsonObject) -> JsonObject:
    """Return an alternative, or the schema that it refers to."""
    if not isinstance(branch, dict):
        return {}
    own = cast("JsonObject", branch)
    target = find_target(own.get("$ref"), root)
    return cast("JsonObject", target) if isinstance(target, dict) and target is not root else own


def _list_required(branches: Sequence[JsonObject], *, is_all: bool) -> list[str]:
    """Names that all of the branches together require."""
    lists = [list(branch.get("required") or []) for branch in branches]
    if is_all:
        return [name for names in lists for name in names]
    return [name for name in lists[0] if all(name in names for names in lists)] if lists else []


def _adapt(schema: JsonObject) -> JsonObject:
    """Replace booleans by schemas, and leave out invalid patterns."""
    adapted: JsonObject = {}
    for keyword, value in schema.items():
        if keyword == "pattern" and not _is_pattern(value):
            continue
        if keyword in SUBSCHEMA_KEYWORDS and not (isinstance(value, bool) and keyword in _BOOLEAN_KEYWORDS):
            adapted[keyword] = _replace_boolean(value)
        elif keyword in SUBSCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            is_by_pattern = keyword == "patternProperties"
            members = cast("JsonObject", value).items()
            kept = ((name, member) for name, member in members if not is_by_pattern or _is_pattern(name))
            adapted[keyword] = {name: _replace_boolean(member) for name, member in kept}
        elif keyword in SUBSCHEMA_LIST_KEYWORDS and isinstance(value, list):
            adapted[keyword] = [_replace_boolean(member) for member in cast("list[Any]", value)]
        else:
            adapted[keyword] = value
    return adapted


def _replace_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else {"not": {}}
    return _adapt(cast("JsonObject", value)) if isinstance(value, dict) else value


def _is_pattern(value: object) -> bool:
    """Whether a model server written in Python takes a regular expression, too."""
    try:
        re.compile(str(value))
    except (re.error, OverflowError, RecursionError):
        return False
    return True
