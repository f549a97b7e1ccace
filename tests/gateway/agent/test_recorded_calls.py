"""Which calls of a replay are equal to recorded ones."""

from typing import Any

import pytest

from gateway.common.arguments import normalize_arguments

SCHEMA = {"properties": {"limit": {"default": 10}, "due": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ({"a": 1.0}, {"a": 1}),
        ({"a": [2.0, {"b": -0.0}]}, {"a": [2, {"b": 0}]}),
        ({"a": "caf\u00e9"}, {"a": "cafe\u0301"}),
        ({"a": 1, "limit": 10}, {"a": 1}),
        ({"a": 1, "limit": 10.0}, {"a": 1}),
        (" no object ", "no object"),
    ],
)
def test_arguments_in_other_forms_are_equal(one: Any, other: Any) -> None:
    assert normalize_arguments(one, SCHEMA) == normalize_arguments(other, SCHEMA)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": True}),
        ({"a": 1.5}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"due": None}, {}),  # null may clear what a missing field leaves
        ({"limit": 11}, {}),
        ({"a": "x"}, {"a": "x "}),
        ({"a": 10.0**300}, {"a": 10}),
    ],
)
def test_different_arguments_are_not_equal(one: Any, other: Any) -> None:
    assert normalize_arguments(one, SCHEMA) != normalize_arguments(other, SCHEMA)
