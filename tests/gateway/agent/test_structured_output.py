"""Schemas come from clients and servers: they must not make the gateway ask other addresses."""

from typing import Any

import pytest
from aiohttp import web

from gateway.agent.structured_output import OutputSchema
from gateway.domain.errors import InvalidRequest
from tests.tools_server.conftest import serve_web

UNCHECKABLE = "its schema refers to what is not in it, or to itself without an end"


def form(schema: object) -> OutputSchema:
    return OutputSchema({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


@pytest.mark.parametrize(
    "schema",
    [{"pattern": "^(a|a)*$"}, {"pattern": "(a+)+$"}, {"properties": {"x": {"pattern": "^(a|a)*$"}}}],
)
def test_pattern_with_catastrophic_backtracking_is_checked_quickly(schema: object) -> None:
    text = "a" * 60 + "!"
    assert form({"additionalProperties": schema, **schema}).find_problem(f'{{"x": "{text}", "y": "{text}"}}')  # type: ignore[dict-item]


def test_too_deeply_nested_answer_is_rejected() -> None:
    assert form({}).find_problem("[" * 100_000 + "]" * 100_000) == "it is too deep"


def test_property_name_pattern_with_catastrophic_backtracking_is_checked_quickly() -> None:
    bad = form({"patternProperties": {"^(a|a)*$": {"type": "string"}}, "additionalProperties": False})
    assert bad.find_problem(f'{{"{"a" * 60}!": 1}}')
    assert bad.find_problem(f'{{"{"a" * 60}": "text"}}') is None
    bad = form({"patternProperties": {"^(a|a)*$": True}, "unevaluatedProperties": False})
    assert bad.find_problem(f'{{"{"a" * 60}!": 1}}')


def test_patterns_are_checked_except_lookarounds() -> None:
    assert form({"pattern": "^[a-z]+$"}).find_problem('"abc"') is None
    assert form({"pattern": "^[a-z]+$"}).find_problem('"ab1"') == "the answer: 'ab1' does not match '^[a-z]+$'"
    assert form({"pattern": "b"}).find_problem('"abc"') is None
    assert form({"pattern": "^(?!x)(a|a)*$"}).find_problem(f'"{"a" * 60}!"') is None


def test_infinitely_recursive_schema_is_reported() -> None:
    assert form({"$ref": "#"}).find_problem("{}") == UNCHECKABLE
    fan: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(9)}
    fan["d9"] = {}
    assert form({"$defs": fan, "$ref": "#/$defs/d0"}).find_problem("{}") == UNCHECKABLE
    older = {name: {"$schema": "http://json-schema.org/draft-07/schema#", **part} for name, part in fan.items()}
    assert form({"$defs": older, "$ref": "#/$defs/d0"}).find_problem("{}") == UNCHECKABLE
    deep: object = {}
    for _ in range(5_000):
        deep = {"not": deep}
    with pytest.raises(InvalidRequest, match="too deep"):
        form(deep)


async def test_remote_schema_reference_is_not_fetched() -> None:
    asked: list[str] = []

    async def schema(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"type": "object"})

    async with serve_web(schema) as url:
        form = OutputSchema(
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"{url}/schema.json"}}}
        )
        assert form.find_problem("{}") == UNCHECKABLE
    assert asked == []
