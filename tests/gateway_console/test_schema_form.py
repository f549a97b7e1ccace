"""JSON schemas as fields, without a browser."""

from typing import Any

import pytest

from gateway_console.components.field_schema import FieldSchema, find_choices, find_item_choices, resolve_schema

ROOT: dict[str, Any] = {
    "$defs": {
        "Color": {"enum": ["red", "green"]},
        "Loop": {"$ref": "#/$defs/Loop"},
        "a/b": {"type": "integer"},
    }
}


def resolve(schema: Any) -> FieldSchema:
    return resolve_schema(schema, ROOT)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "string"),
        ({"type": ["string", "null"]}, "string"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer"),
        ({"oneOf": [{"type": "null"}, {"allOf": [{"type": "boolean"}]}]}, "boolean"),
        ({"$ref": "#/$defs/a~1b"}, "integer"),
        ({"type": ["string", "integer"]}, None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, None),
        ({"$ref": "#/$defs/Loop"}, None),
        ({"$ref": "#/$defs/Missing"}, None),
        ({"$ref": "https://evil.example/schema"}, None),
        (True, None),
        ({}, None),
    ],
)
def test_each_form_of_a_type_is_read(schema: Any, kind: str | None) -> None:
    assert resolve(schema).own.get("type") == kind


@pytest.mark.parametrize(
    ("schema", "choices"),
    [
        ({"$ref": "#/$defs/Color"}, [("red", "red"), ("green", "green")]),
        ({"enum": ["r", "g"], "enumNames": ["Red"]}, [("r", "Red"), ("g", "g")]),
        ({"oneOf": [{"const": 1, "title": "One"}, {"const": 2}]}, [(1, "One"), (2, "2")]),
        ({"enum": [True, None, {"a": 1}]}, [(True, "True"), ({"a": 1}, "{'a': 1}")]),
        ({"const": "only"}, [("only", "only")]),
        ({"type": "string"}, []),
        ({"anyOf": [{"const": 1}, {"type": "string"}]}, []),
    ],
)
def test_each_form_of_a_choice_is_read(schema: Any, choices: list[tuple[object, str]]) -> None:
    assert find_choices(resolve(schema)) == choices


def test_choices_of_a_list_are_those_of_its_items() -> None:
    schema = resolve({"type": "array", "items": {"$ref": "#/$defs/Color"}})
    assert find_item_choices(schema) == [("red", "red"), ("green", "green")]
    assert find_item_choices(resolve({"type": "array", "items": {"type": "string"}})) == []
    assert find_item_choices(resolve({"type": "array"})) == []


def test_title_beside_a_reference_is_kept() -> None:
    assert resolve({"$ref": "#/$defs/Color", "title": "Paint"}).own["title"] == "Paint"
