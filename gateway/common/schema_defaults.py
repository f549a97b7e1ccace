"""Fills in the defaults of required properties."""

from typing import Any, cast

JsonObject = dict[str, Any]
_MAX_DEPTH = 20
_MAX_REFERENCES = 10


def fill_required_defaults(schema: JsonObject, arguments: JsonObject) -> JsonObject:
    """The arguments with the default of each required property that is missing.

    Schemas of many servers list properties as required that have a default, and models leave those out. It is the same
    object if nothing is missing.
    """
    return _fill(schema, arguments, schema, _MAX_DEPTH)


def _fill(schema: Any, value: Any, root: JsonObject, depth: int) -> Any:
    schema = _resolve(schema, root)
    if depth == 0 or not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        items, members = cast("JsonObject", schema).get("items"), cast("list[Any]", value)
        filled = [_fill(items, member, root, depth - 1) for member in members]
        return filled if any(new is not old for new, old in zip(filled, members, strict=True)) else members
    properties = cast("JsonObject", schema).get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return cast("Any", value)
    schemas, fields = cast("JsonObject", properties), cast("JsonObject", value)
    changes = {
        name: new
        for name, member in fields.items()
        if name in schemas and (new := _fill(schemas[name], member, root, depth - 1)) is not member
    }
    required = cast("JsonObject", schema).get("required")
    for name in cast("list[Any]", required) if isinstance(required, list) else ():
        definition = _resolve(schemas.get(name), root) if isinstance(name, str) and name not in fields else None
        if isinstance(definition, dict) and _has_default(cast("JsonObject", definition)):
            changes[name] = definition["default"]
    return {**fields, **changes} if changes else fields


def _has_default(definition: JsonObject) -> bool:
    """Whether there is a default; null often means that there is none."""
    if definition.get("default") is not None:
        return True
    return "default" in definition and "null" in definition.get("type", ())


def _resolve(schema: Any, root: JsonObject) -> Any:
    """The schema that local references lead to."""
    for _ in range(_MAX_REFERENCES):
        members: JsonObject = cast("JsonObject", schema) if isinstance(schema, dict) else {}
        reference = members.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = root
        for part in reference[2:].split("/"):
            target = cast("JsonObject", target).get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            break
        schema = {**cast("JsonObject", target), **{key: value for key, value in members.items() if key != "$ref"}}
    return cast("Any", schema)
