"""Defaults of required properties."""

from typing import Any

import pytest

from gateway.common.schema_defaults import fill_required_defaults
from gateway.llm.tool_repair.repair import RepairedCall, repair_call

UNIT = {"type": "string", "default": "C"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": UNIT,
        "days": {"type": "integer", "default": 3},
        "options": {"$ref": "#/$defs/options"},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/options"}},
        "none": {"type": "string", "default": None},
    },
    "required": ["city", "unit"],
    "$defs": {"options": {"type": "object", "properties": {"unit": UNIT}, "required": ["unit"]}},
}


@pytest.mark.parametrize(
    ("arguments", "filled"),
    [
        ({"city": "Rome"}, {"city": "Rome", "unit": "C"}),
        ({"city": "Rome", "unit": "F"}, {"city": "Rome", "unit": "F"}),
        ({}, {"unit": "C"}),
        ({"unit": "F", "options": {}, "stops": [{}, {"unit": "F"}]},
         {"unit": "F", "options": {"unit": "C"}, "stops": [{"unit": "C"}, {"unit": "F"}]}),
    ],
)  # fmt: skip
def test_only_missing_required_defaults_are_filled_in(arguments: dict[str, Any], filled: dict[str, Any]) -> None:
    assert fill_required_defaults(SCHEMA, arguments) == filled


def test_odd_schemas_and_null_defaults_change_nothing() -> None:
    arguments = {"a": [{}]}
    schemas: list[Any] = [
        {"required": ["x"], "properties": {"x": {"type": "string", "default": None}}},
        {"required": "x", "properties": {"x": UNIT}},
        {"required": ["x"], "properties": []},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"required": ["x"], "properties": {"x": True}},
    ]
    assert all(fill_required_defaults(schema, arguments) is arguments for schema in schemas)


def test_call_without_a_required_default_is_valid() -> None:
    repaired = repair_call("weather", '{"city": "Rome"}', {"weather": SCHEMA})
    assert isinstance(repaired, RepairedCall)
    assert repaired.arguments == {"city": "Rome", "unit": "C"}
    assert repaired.repairs == ("a required default",)
