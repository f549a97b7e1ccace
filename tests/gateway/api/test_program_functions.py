"""Functions of programs for the tools of odd and hostile servers."""

import json
from pathlib import Path
from typing import Any

import mcp.types as t
import pytest

from gateway.simulator import Simulator
from tests.gateway.api.test_hostile_definitions import serve_hostile
from tests.gateway.api.test_programs import list_results, run, write_programs
from tests.gateway.mcp_client.hostile_server import HostileServer, make_tool
from tests.stack import serve_gateway

TEXT = {"type": "string"}
HONEST = make_tool("honest", input_schema={"type": "object", "properties": {"text": TEXT}})
USE_OF_ALL = "print(len([1]), str(2), list(range(2)))\nresult: str = await honest(text='a')\nresult"


def make_object(*names: str, description: str = "It is described.") -> dict[str, Any]:
    return {"type": "object", "properties": {name: {**TEXT, "description": description} for name in names}}


ODD_TOOLS = {
    "property that ends the docstring": make_tool("odd", input_schema=make_object('p"""')),
    "property that declares a function": make_tool(
        "odd", input_schema=make_object('p"""\n    ...\nasync def honest(*, other: int) -> int:\n    """')
    ),
    "description that ends the docstring": make_tool(
        "odd", '"""\n\\', input_schema=make_object("p", description='"""\\')
    ),
    "names of Python": make_tool(
        "odd",
        input_schema=make_object("self", "class", "__init__", "Any", "str", "others", "größe", ""),
        output_schema=make_object("self", "class", "__init__", "Any", "str", "a\nb", "'\"", "größe", ""),
    ),
    "enum with quotes": make_tool(
        "odd", input_schema={"type": "object", "properties": {"p": {"enum": ['"', "'", "\n", '"""', "\\", None, True]}}}
    ),
    "references in a circle": make_tool(
        "odd",
        output_schema={
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#"}},
            "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}},
        },
    ),
    "many properties": make_tool("odd", input_schema=make_object(*(f"p{number}" for number in range(2_000)))),
    **{name: make_tool(name) for name in ("print", "len", "str", "list", "asyncio", "Any", "honest_result", "_", "1a")},
}


@pytest.mark.faults
@pytest.mark.parametrize("tool", ODD_TOOLS.values(), ids=ODD_TOOLS.keys())
@pytest.mark.parametrize("is_first", [True, False])
async def test_odd_tool_breaks_no_program_that_does_not_use_it(
    database_url: str, simulator: Simulator, tmp_path: Path, tool: t.Tool, is_first: bool
) -> None:
    server = HostileServer(*((tool, HONEST) if is_first else (HONEST, tool)))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        assert list_results(await run(gateway, USE_OF_ALL)) == [("ok", "1 2 [0, 1]\ndone")]


FUNCTIONS = {
    "print": "print_",
    "list": "list_",
    "json": "json_",
    "_private": "tool_private",
    "3d": "tool_3d",
    "class": "class_",
    "other_result": "other_result_",
    "a-b": "a_b",
}


@pytest.mark.faults
async def test_tools_are_called_by_functions_whose_names_are_free(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    other = make_tool("other", output_schema=make_object("text"))
    server = HostileServer(*map(make_tool, FUNCTIONS), other)
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        program = "\n".join(f"print(await {function}())" for function in FUNCTIONS.values())
        reply = await run(gateway, program)
        assert list_results(reply) == [("ok", "\n".join(["done"] * len(FUNCTIONS)))]
        assert [call["tool"] for call in reply.get_event_data("tool.call")[1:]] == list(FUNCTIONS)


DEEP = "x: list = []\nfor _ in range(3000):\n    x = [x]\n"
JSON_ALONE = "the arguments of store() must be JSON values"
BAD_ARGUMENTS = {
    "nested too deeply": (f"{DEEP}await store(data=x)", JSON_ALONE),
    "key that is no text": ("await store(data={(1, 2): 3})", JSON_ALONE),
    "NaN": ("await store(data=float('nan'))", f"{JSON_ALONE}, which NaN and infinity are not"),
    "infinity in a list": ("await store(data=[{'a': float('-inf')}])", f"{JSON_ALONE}, which NaN and infinity are not"),
    "too large": ("await store(data='x' * 300_000)", "the arguments of store() are too large"),
    "too large together": (
        "for _ in range(40):\n    await store(data='x' * 200_000)",
        "and all calls of a program 4,194,304",
    ),
}


@pytest.mark.faults
async def test_bad_arguments_raise_in_the_program_and_reach_no_server(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("store", input_schema={"type": "object", "properties": {"data": {}}}))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        for name, (program, shown) in BAD_ARGUMENTS.items():
            server.calls.clear()
            lines = "\n".join(f"    {line}" for line in program.splitlines())
            reply = await run(gateway, f"try:\n{lines}\nexcept (TypeError, ValueError) as error:\n    print(error)")
            ((outcome, text),) = list_results(reply)
            assert (outcome, shown in text) == ("ok", True), (name, text)
            assert len(server.calls) == (20 if name == "too large together" else 0), name


@pytest.mark.faults
async def test_invisible_characters_of_programs_reach_neither_model_nor_database(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("store", input_schema={"type": "object", "properties": {"data": {}}}))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        hidden = "chr(0) + chr(0x200b) + chr(0xE0041)"
        reply = await run(gateway, f"await store(data={hidden} + 'x')\nprint({hidden} + 'shown')\n{hidden} + 'end'")
        assert list_results(reply) == [("ok", "shown\nend")]
        assert reply.get_event_data("turn.completed")
        assert len(server.calls) == 1


async def test_server_s_tool_of_the_same_name_is_a_function_of_programs(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("run_python"))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        reply = await run(gateway, "await run_python()")
        ((outcome, text),) = list_results(reply)
        assert outcome == "error"
        assert "run_python" in text
        (name,) = [spec.name for spec in gateway.state.toolbox.list_specs()]
        assert name.startswith("run_python_")
        assert list_results(await run(gateway, f"await {name}()")) == [("ok", "done")]


async def test_client_tool_of_the_same_name_hides_the_gateways(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    tool = {"type": "function", "function": {"name": "run_python", "parameters": {"type": "object"}}}
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        write_programs(gateway, "1 + 1")
        reply = await gateway.chat_stream("Run it", code="only", tools=[tool, "calculator"])
        assert reply.get_event_data("turn.started")[0]["tools"] == ["calculator", "run_python"]
        assert [call["client"] for call in reply.get_event_data("tool.call")] == [True]


@pytest.mark.parametrize("length", [10, 100_000])
async def test_structured_value_reaches_the_program_whole_or_as_an_error(
    database_url: str, simulator: Simulator, tmp_path: Path, length: int
) -> None:
    server = HostileServer(make_tool("read", output_schema=make_object("text")))
    value = {"text": "x" * length}
    text = t.TextContent(type="text", text=json.dumps(value))
    server.result = t.CallToolResult(content=[text], structured_content=value)
    program = "try:\n    print(len((await read())['text']))\nexcept RuntimeError as error:\n    print(error)"
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        ((outcome, shown),) = list_results(await run(gateway, program))
        assert outcome == "ok"
        assert shown.startswith(str(length) if length < 1_000 else "The call succeeded, but it has no structured value")
        assert len(shown) < 2_000
