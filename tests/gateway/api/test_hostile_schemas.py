"""Schemas that are expensive to check, from clients, MCP servers and models.

The gateway runs in the thread of the test, so the calls that are counted are those of its event loop.
"""

import json
from typing import Any

import pytest

from gateway.agent.structured_output import check_answer_content
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import ToolSpec
from gateway.llm.tool_repair.repair import RepairedCall, repair_call
from gateway.mcp_client.server_config import ServerConfig
from gateway.simulator import Fault, Simulator
from gateway_runtime.json_schema.validation import CompiledSchema, OperationBudget, OperationsExceeded
from tests.call_counter import count_function_calls
from tests.gateway.mcp_client.hostile_server import HostileServer, make_tool
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.stack import Gateway, serve_asgi, serve_gateway

MAX_CALLS_IN_LOOP = 500_000
"""Function calls of the event loop for a whole request."""


def make_response_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def make_nested_references(levels: int, width: int, **keywords: Any) -> Any:
    """References that multiply by `width` at each level."""
    definitions: dict[str, Any] = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * width, **keywords} for level in range(levels)
    }
    return {"type": "object", "$defs": {**definitions, f"d{levels}": {}}, "$ref": "#/$defs/d0"}


MANY_PROPERTIES = {"properties": {f"p{i:05}": {"type": "string"} for i in range(11_000)}}
LARGE_TEXTS = {"enum": ["x" * 1_000 + str(i) for i in range(3_000)]}
REFERENCES_TO_A_LARGE_ENUM = {
    "$defs": {"e": {"enum": ["x" * 14 + str(i) for i in range(5_000)]}},
    "properties": {f"p{i}": {"$ref": "#/$defs/e"} for i in range(200)},
}
EXPENSIVE_SCHEMAS = {
    "references": make_nested_references(9, 10),
    "unevaluated": make_nested_references(60, 2, unevaluatedProperties=False),
    "dependent": {
        "$defs": {
            **{f"d{n}": {"dependentSchemas": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "ab"}} for n in range(50)},
            "d50": {},
        },
        "unevaluatedProperties": False,
        "$ref": "#/$defs/d0",
    },
    "branches": {"anyOf": [{"type": "string"}] * 4_000},
    "false": {"anyOf": [False] * 9_000},
    "anchors": {
        "$defs": {"a": {"$anchor": "z"}, "b": {"properties": {f"p{i}": {} for i in range(4_000)}}},
        "additionalProperties": {"$ref": "#z"},
    },
    "patterns": {"patternProperties": {rf"\w{{100}}a{i}": {} for i in range(1_500)}},
}
SMALL_VALUE = {"a": 1, "b": 2, **{f"q{i}": i for i in range(20)}}
VALUE = {"a": 1, "b": 2, "c": ["x" * 50] * 5_000, **{f"q{i}": i for i in range(2_000)}}


@pytest.mark.parametrize("schema", [MANY_PROPERTIES, LARGE_TEXTS], ids=["nodes", "characters"])
async def test_large_response_format_is_refused_by_its_size(shared_gateway: Gateway, schema: Any) -> None:
    with count_function_calls() as calls:
        reply = await shared_gateway.chat("Hello", response_format=make_response_format(schema))
    assert (reply.status, reply.body["error"]["param"]) == (422, "response_format")
    assert "more than" in reply.body["error"]["message"]
    assert calls.total() < MAX_CALLS_IN_LOOP


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "type: must be a type of JSON Schema"),
        ({"properties": {"a": {"minLength": -1}}}, "properties.a.minLength: must be a whole number"),
        ({"properties": {"a": 5}}, "properties.a: must be an object or a boolean"),
        ({"anyOf": []}, "anyOf: must be a list of schemas"),
        ({"required": "a"}, "required: must be a list of names"),
    ],
)
async def test_malformed_response_format_names_its_keyword(shared_gateway: Gateway, schema: Any, message: str) -> None:
    reply = await shared_gateway.chat("Hello", response_format=make_response_format(schema))
    assert (reply.status, message in reply.body["error"]["message"]) == (422, True), reply.body


@pytest.mark.parametrize("schema", EXPENSIVE_SCHEMAS.values(), ids=EXPENSIVE_SCHEMAS.keys())
def test_operations_of_a_validation_are_bounded(schema: Any) -> None:
    budget = OperationBudget()
    with count_function_calls() as calls, pytest.raises(OperationsExceeded):
        list(CompiledSchema(schema).iterate_errors(VALUE, budget))
    assert budget.remaining < 0
    assert calls.total() < 5_000_000


@pytest.mark.parametrize("name", ["references", "branches", "patterns"])
async def test_expensive_response_format_does_not_occupy_the_event_loop(shared_gateway: Gateway, name: str) -> None:
    schema = EXPENSIVE_SCHEMAS[name] | {"default": SMALL_VALUE}  # which the simulator answers
    with count_function_calls() as calls:
        reply = await shared_gateway.chat("Hello", response_format=make_response_format(schema))
    assert reply.body["error"]["code"] == "structured_output_invalid", reply.body
    assert calls.total() < MAX_CALLS_IN_LOOP


async def test_references_to_a_large_enum_are_checked_within_the_budget() -> None:
    schema = CompiledSchema(REFERENCES_TO_A_LARGE_ENUM)
    assert schema.find_error({f"p{i}": "x" * 14 + "4999" for i in range(200)}) is None
    error = schema.find_error({"p0": "none of them"})
    assert error is not None
    assert len(error.message) <= 2_000


async def test_large_schema_of_a_client_tool_is_refused(shared_gateway: Gateway) -> None:
    def make_client_tool(name: str, parameters: Any) -> Any:
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    small = {"properties": {f"p{i}": {} for i in range(4_900)}}
    for tools in ([make_client_tool("t", MANY_PROPERTIES)], [make_client_tool(f"t{i}", small) for i in range(20)]):
        body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "Hello"}], "tools": tools}
        with count_function_calls() as calls:
            reply = await shared_gateway.post("/v1/chat/completions", body)
        # All values of the second body together are too many for any body.
        assert (reply.status, reply.body["error"]["param"]) == (400, "tools" if len(tools) == 1 else None), reply.body
        assert calls.total() < MAX_CALLS_IN_LOOP


@pytest.mark.parametrize("schema", EXPENSIVE_SCHEMAS.values(), ids=EXPENSIVE_SCHEMAS.keys())
def test_calls_of_an_expensive_tool_are_repaired_with_one_budget(schema: Any) -> None:
    arguments = json.dumps(VALUE)
    budget = OperationBudget(20_000)
    repair_call("t", "{}", {"t": schema}, budget)
    with count_function_calls() as calls:
        results = [repair_call("t", arguments, {"t": schema}, budget) for _ in range(8)]
    assert all(isinstance(result, RepairedCall) and result.arguments == VALUE for result in results)
    assert calls.total() < 2_000_000


@pytest.mark.parametrize("name", ["references", "unevaluated", "branches", "patterns"])
async def test_expensive_schemas_of_a_server_do_not_occupy_the_event_loop(
    database_url: str, simulator: Simulator, name: str
) -> None:
    schema = {"type": "object", **EXPENSIVE_SCHEMAS[name]}
    server = HostileServer(make_tool("t", input_schema=schema, output_schema=schema))
    server.result.structured_content = VALUE
    simulator.faults.add_faults(Fault(kind="tool_calls", calls=[{"name": "t", "arguments": json.dumps(VALUE)}]))
    async with (
        serve_asgi(server.create_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        with count_function_calls() as calls:
            reply = await gateway.chat_stream("Call the tool")
        assert [event["outcome"] for event in reply.get_event_data("tool.result")] == ["ok"]
        assert server.calls == [VALUE]
        assert calls.total() < 2 * MAX_CALLS_IN_LOOP


def test_schema_is_compiled_once() -> None:
    schema = {"properties": {f"p{i}": {"type": "string"} for i in range(1_000)}}
    spec = ToolSpec("t", "s", "t", "", schema)
    repair_call("t", '{"p1": "x"}', {"t": spec.input_schema})
    with count_function_calls() as calls:
        repair_call("t", '{"p1": "x"}', {"t": spec.input_schema})
    assert not any("check_keywords" in name for _, name in calls)
    assert calls.total() < 1_000


async def test_simulator_generates_a_bounded_answer(shared_gateway: Gateway) -> None:
    schema: Any = {"type": "string"}
    for _ in range(5):
        schema = {"type": "array", "minItems": 1_000_000_000, "items": schema}
    with count_function_calls() as calls:
        reply = await shared_gateway.chat("Hello", response_format=make_response_format(schema))
    assert reply.status in (200, 502)
    assert calls.total() < 4 * MAX_CALLS_IN_LOOP  # an unbounded answer has 10**45 values


@pytest.mark.parametrize("name", ["references", "unevaluated", "branches", "anchors"])
async def test_answer_to_an_expensive_question_does_not_occupy_the_event_loop(name: str) -> None:
    with count_function_calls() as calls, pytest.raises(InvalidRequest):
        await check_answer_content(VALUE, EXPENSIVE_SCHEMAS[name])
    assert calls.total() < MAX_CALLS_IN_LOOP


async def test_question_with_a_large_form_ends_the_call(database_url: str, simulator: Simulator) -> None:
    server = HostileServer(make_tool("t"))
    server.question = {"type": "object", **MANY_PROPERTIES}
    simulator.faults.add_faults(Fault(kind="tool_calls", calls=[{"name": "t", "arguments": "{}"}]))
    async with (
        serve_asgi(server.create_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        reply = await gateway.chat_stream("Call the tool")
    assert reply.get_event_data("input.required") == []
    [result] = reply.get_event_data("tool.result")
    assert "too large" in result["content"][0]["text"]


async def test_list_of_large_schemas_does_not_occupy_the_event_loop() -> None:
    large = {"type": "object", "properties": {f"p{i}": {} for i in range(100_000)}}
    server = HostileServer(*(make_tool(f"t{i}", input_schema=large) for i in range(4)), make_tool("small"))
    async with serve_asgi(server.create_app(json_response=True)) as url:
        with count_function_calls() as calls:
            async with connect_toolbox(ServerConfig(name="t", url=f"{url}/mcp", prefix="")) as toolbox:
                assert [spec.name for spec in toolbox.list_specs()] == ["small"]
    assert sum(count for (_, name), count in calls.items() if "_walk_schema" in name) < 100_000


@pytest.mark.parametrize("value", ["{}", '"text"', "1", '[{"a": 1}]'])
def test_work_for_the_arguments_of_a_model_grows_at_most_with_their_length(value: str) -> None:
    schemas: Any = {"t": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}}
    totals: list[int] = []
    for count in (2_000, 16_000):
        arguments = "{" + ", ".join(f'"k{i}": {value}' for i in range(count)) + "}"
        with count_function_calls() as calls:
            repair_call("t", arguments, schemas)
        totals.append(calls.total())
    assert totals[1] < 10 * totals[0]  # quadratic work would be 64 times as much
