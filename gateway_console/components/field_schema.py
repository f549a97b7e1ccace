"""Types and choices of a field's JSON schema."""

from dataclasses import dataclass
from typing import Any, cast

JsonObject = dict[str, Any]
_MAX_REFERENCES = 20
_Choices = list[tuple[object, str]]


@dataclass(frozen=True)
class FieldSchema:
    """A resolved schema, and the root in which its references are."""

    own: JsonObject
    root: JsonObject


def resolve_schema(value: object, root: JsonObject) -> FieldSchema:
    """Follow local references, and leave out null and wrappers of one schema."""
    own = cast(JsonObject, value) if isinstance(value, dict) else {}
    for _ in range(_MAX_REFERENCES):
        outer = {name: own[name] for name in ("title", "description", "default") if name in own}
        if isinstance(own.get("$ref"), str):
            own = {**_find_reference(root, own["$ref"]), **outer}
            continue
        if (inner := _find_only_alternative(own)) is None:
            break
        own = {**inner, **outer}
    else:
        own = {}  # a circle of references: its field is entered as JSON
    if isinstance(own.get("type"), list):
        kinds = [kind for kind in cast(list[object], own["type"]) if kind != "null"]
        own = {**own, "type": kinds[0] if len(kinds) == 1 else None}
    return FieldSchema(own, root)


def find_choices(schema: FieldSchema) -> _Choices:
    """Return the values of a choice and their names.

    The list is empty for other schemas.
    """
    own = schema.own
    if isinstance(values := own.get("enum"), list):
        names = own.get("enumNames")
        titles = cast(list[object], names if isinstance(names, list) else values)
        return [
            (value, str(titles[index] if index < len(titles) else value))
            for index, value in enumerate(cast(list[object], values))
            if value is not None
        ]
    if "const" in own:
        return [(own["const"], str(own.get("title") or own["const"]))]
    for name in ("oneOf", "anyOf"):
        parts = _list_schemas(own.get(name))
        if parts and all("const" in part for part in parts):
            return [(part["const"], str(part.get("title") or part["const"])) for part in parts]
    return []


def find_item_choices(schema: FieldSchema) -> _Choices:
    """Return the choices of a list's items."""
    return find_choices(resolve_schema(schema.own.get("items"), schema.root))


def _find_only_alternative(own: JsonObject) -> JsonObject | None:
    for name in ("anyOf", "oneOf", "allOf"):
        parts = [part for part in _list_schemas(own.get(name)) if part.get("type") != "null"]
        if len(parts) == 1 and "const" not in parts[0]:
            return parts[0]
    return None


def _list_schemas(value: object) -> list[JsonObject]:
    return (
        [cast(JsonObject, part) for part in cast(list[object], value) if isinstance(part, dict)]
        if isinstance(value, list)
        else []
    )


def _find_reference(root: JsonObject, reference: str) -> JsonObject:
    """Return the schema that a local reference names.

    It is empty if there is none.
    """
    if not reference.startswith("#"):
        return {}
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = cast(JsonObject, found).get(name) if isinstance(found, dict) else None
    return cast(JsonObject, found) if isinstance(found, dict) else {}
