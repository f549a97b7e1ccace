"""Tests of answers checked against schemas that clients and servers send."""

from typing import Any

import pytest
from aiohttp import web

from gateway.agent.structured_output import OutputSchema
from gateway.domain.errors import InvalidRequest
from tests.tools_server.conftest import serve_web

NOT_CHECKABLE_MESSAGE = "its schema has a reference that cannot be resolved or never ends"


def make_output_schema(schema: object) -> OutputSchema:
    return OutputSchema({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


@pytest.mark.parametrize(
    "schema",
    [{"pattern": "^(a|a)*$"}, {"pattern": "(a+)+$"}, {"properties": {"x": {"pattern": "^(a|a)*$"}}}],
)
def test_pattern_with_catastrophic_backtracking_is_checked_quickly(schema: object) -> None:
    text = "a" * 60 + "!"
    assert make_output_schema({"additionalProperties": schema, **schema}).find_problem(
        f'{{"x": "{text}", "y": "{text}"}}'
    )  # type: ignore[dict-item]


def test_too_deeply_nested_answer_is_rejected() -> None:
    assert make_output_schema({}).find_problem("[" * 100_000 + "]" * 100_000) == "it is nested too deeply"


def test_property_name_pattern_with_catastrophic_backtracking_is_checked_quickly() -> None:
    schema = make_output_schema({"patternProperties": {"^(a|a)*$": {"type": "string"}}, "additionalProperties": False})
    assert schema.find_problem(f'{{"{"a" * 60}!": 1}}')
    assert schema.find_problem(f'{{"{"a" * 60}": "text"}}') is None
    schema = make_output_schema({"patternProperties": {"^(a|a)*$": True}, "unevaluatedProperties": False})
    assert schema.find_problem(f'{{"{"a" * 60}!": 1}}')


def test_patterns_are_checked_except_lookarounds() -> None:
    assert make_output_schema({"pattern": "^[a-z]+$"}).find_problem('"abc"') is None
    assert (
        make_output_schema({"pattern": "^[a-z]+$"}).find_problem('"ab1"')
        == "the answer: 'ab1' does not match '^[a-z]+$'"
    )
    assert make_output_schema({"pattern": "b"}).find_problem('"abc"') is None
    assert make_output_schema({"pattern": "^(?!x)(a|a)*$"}).find_problem(f'"{"a" * 60}!"') is None


def test_infinitely_recursive_schema_is_reported() -> None:
    assert make_output_schema({"$ref": "#"}).find_problem("{}") == NOT_CHECKABLE_MESSAGE
    definitions: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(9)}
    definitions["d9"] = {}
    assert make_output_schema({"$defs": definitions, "$ref": "#/$defs/d0"}).find_problem("{}") == NOT_CHECKABLE_MESSAGE
    draft_07 = {
        name: {"$schema": "http://json-schema.org/draft-07/schema#", **definition}
        for name, definition in definitions.items()
    }
    assert make_output_schema({"$defs": draft_07, "$ref": "#/$defs/d0"}).find_problem("{}") == NOT_CHECKABLE_MESSAGE
    nested: object = {}
    for _ in range(5_000):
        nested = {"not": nested}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        make_output_schema(nested)


async def test_remote_schema_reference_is_not_fetched() -> None:
    requested_paths: list[str] = []

    async def serve_schema(request: web.Request) -> web.Response:
        requested_paths.append(request.path)
        return web.json_response({"type": "object"})

    async with serve_web(serve_schema) as url:
        output_schema = OutputSchema(
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"{url}/schema.json"}}}
        )
        assert output_schema.find_problem("{}") == NOT_CHECKABLE_MESSAGE
    assert requested_paths == []
