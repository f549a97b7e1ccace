"""Servers with odd definitions, and lists that never end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ToolListChangedNotification

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

ERAS = pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
OBJECT = {"type": "object"}
TEXT = {"type": "string"}

REPAIRED: dict[str, dict[str, Any]] = {
    "required_null": {"inputSchema": {**OBJECT, "properties": {"a": TEXT}, "required": None}},
    "required_true": {"inputSchema": {**OBJECT, "properties": {"a": {**TEXT, "required": True}}}},
    "properties_null": {"inputSchema": {**OBJECT, "properties": None}},
    "properties_list": {"inputSchema": {**OBJECT, "properties": []}},
    "property_null": {"inputSchema": {**OBJECT, "properties": {"a": None, "b": "string"}}},
    "no_type": {"inputSchema": {"$schema": "http://json-schema.org/draft-07/schema#"}},
    "two_types": {"inputSchema": {"type": ["object", "null"], "properties": {"a": TEXT}}},
    "no_schema": {"inputSchema": None},
    "root_ref": {"inputSchema": {"$ref": "#/$defs/A", "$defs": {"A": {**OBJECT, "properties": {"a": TEXT}}}}},
    "endless_ref": {"inputSchema": {"$ref": "#"}},
    "lost_ref": {"inputSchema": {**OBJECT, "properties": {"a": {"$ref": "#/$defs/gone"}}}},
    "remote_ref": {"inputSchema": {**OBJECT, "properties": {"a": {"$ref": "http://example.com/a.json"}}}},
    "python_types": {"inputSchema": {**OBJECT, "properties": {"a": {"type": "str"}, "b": {"type": ["int", "none"]}}}},
    "unknown_type": {"inputSchema": {**OBJECT, "properties": {"a": {"type": "file"}}}},
    "draft_4": {"inputSchema": {**OBJECT, "properties": {"a": {"minimum": 1, "exclusiveMinimum": True}}}},
    "draft_7": {"inputSchema": {**OBJECT, "properties": {"a": {"items": [TEXT, TEXT], "additionalItems": False}}}},
    "empty_union": {"inputSchema": {**OBJECT, "properties": {"a": {"anyOf": []}}}},
    "texts": {"inputSchema": {**OBJECT, "properties": {"a": {"description": None, "title": 5, "minLength": "1"}}}},
    "twice": {"inputSchema": {**OBJECT, "properties": {"a": TEXT}, "required": ["a", "a", 5]}},
    "icon": {"icons": [{"theme": "dark"}, {"src": "https://example.com/i.png"}]},
    "icons": {"icons": {"src": "https://example.com/i.png"}},
    "annotations": {"annotations": {"readOnlyHint": "perhaps", "title": 5}},
    "description": {"description": 5, "title": ["x"]},
    "meta": {"_meta": "none"},
    "output": {"outputSchema": "text"},
}
"""Tools that are repaired."""
VALID: dict[str, dict[str, Any]] = {
    "plain": {},
    "pattern": {
        "inputSchema": {**OBJECT, "properties": {"a": {**TEXT, "pattern": "("}}, "patternProperties": {"(": {}}}
    },
    "root_union": {
        "inputSchema": {
            **OBJECT,
            "anyOf": [{"$ref": "#/$defs/A"}, {"required": ["b"]}],
            "$defs": {"A": {"properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"]}},
        }
    },
    "root_choice": {
        "inputSchema": {**OBJECT, "oneOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]},
        "title": "C",
    },
    "root_parts": {
        "inputSchema": {**OBJECT, "allOf": [{"properties": {"a": TEXT}, "required": ["a"]}, True], "not": False}
    },
    "root_values": {"inputSchema": {**OBJECT, "enum": [{"a": 1}], "const": {"a": 1}}},
    "booleans": {"inputSchema": {**OBJECT, "properties": {"a": True, "b": False}, "additionalProperties": False}},
}
LEFT_OUT: list[Any] = [
    make_raw_tool("is_text", inputSchema=TEXT),
    make_raw_tool("is_list", inputSchema=[]),
    make_raw_tool("too_deep", inputSchema={**OBJECT, "properties": {"a": None}}),
    make_raw_tool(None),
    make_raw_tool(5),
    "no object",
]
deepest = LEFT_OUT[2]["inputSchema"]
for _ in range(60):
    deepest["properties"] = {"a": {"properties": {}}}
    deepest = deepest["properties"]["a"]


@asynccontextmanager
async def connect_host(gateway: Gateway, mode: str, **options: Any) -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode, **options) as client,
    ):
        yield client


async def list_problems(gateway: Gateway, server: str = "odd") -> dict[str, tuple[bool, str]]:
    """Odd definitions by name: left out or not, and the problem."""
    servers = (await gateway.get("/api/v1/mcp/servers")).body["servers"]
    problems = next(view["definition_problems"] for view in servers if view["name"] == server)
    return {problem["name"]: (problem["left_out"], problem["problem"]) for problem in problems}


@ERAS
async def test_odd_tools_are_repaired_or_left_out_alone_and_named(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    tools = [make_raw_tool(name, **fields) for name, fields in {**VALID, **REPAIRED}.items()]
    server = RawServer(*tools, *LEFT_OUT, modern=modern)
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        listed = {tool["name"]: tool for tool in (await gateway.get("/api/v1/tools")).body["tools"]}
        assert listed.keys() == {*VALID, *REPAIRED}
        assert listed["root_ref"]["input_schema"]["properties"] == {"a": TEXT}
        assert listed["draft_4"]["input_schema"]["properties"] == {"a": {"exclusiveMinimum": 1}}
        problems = await list_problems(gateway)
        assert {name for name, (left_out, _) in problems.items() if not left_out} == {*REPAIRED}
        assert {name for name, (left_out, _) in problems.items() if left_out} == {
            "is_text", "is_list", "too_deep", "None", "5", "",
        }  # fmt: skip
        assert "required" in problems["required_null"][1]
        assert (await gateway.chat("Hello")).status == 200
        offered = [tool["function"] for tool in simulator.requests[-1]["tools"]]
        assert {tool["name"] for tool in offered} == {*VALID, *REPAIRED}
        for tool in offered:
            Draft202012Validator.check_schema(tool["parameters"])
            assert tool["parameters"]["type"] == "object"
            assert tool["parameters"].keys().isdisjoint(("allOf", "anyOf", "const", "enum", "not", "oneOf"))
            assert tool["parameters"]["properties"] is not None
            assert not any(value is True or value is False for value in tool["parameters"]["properties"].values())
        union = next(tool["parameters"] for tool in offered if tool["name"] == "root_union")
        assert (union["properties"].keys(), union["required"]) == ({"a", "b"}, ["b"])
        assert "anyOf" in union["description"]
        for mode in ("auto", "legacy"):
            async with connect_host(gateway, mode) as host:
                tools = (await host.list_tools()).tools
                assert {tool.name for tool in tools} == {*listed, "ask_agent"}
                assert "anyOf" in next(tool for tool in tools if tool.name == "root_union").input_schema
                assert (await host.call_tool("root_ref", {"a": "x"})).content[0].text == "root_ref"  # type: ignore[union-attr]


async def test_tool_whose_headers_cannot_be_sent_is_left_out_and_named(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    schema = {**OBJECT, "properties": {"a": {**TEXT, "x-mcp-header": "A B"}}}
    server = RawServer(make_raw_tool("good"), make_raw_tool("bad", inputSchema=schema))
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        assert [tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]] == ["good"]
        left_out, problem = (await list_problems(gateway))["bad"]
        assert (left_out, "x-mcp-header" in problem) == (True, True)


@ERAS
async def test_array_output_schema_costs_no_tool_at_the_server_or_at_hosts(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    tools = (make_raw_tool("good"), make_raw_tool("rows", outputSchema={"type": "array", "items": {}}))
    server = RawServer(*tools, modern=modern)
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        for mode in ("auto", "legacy"):
            async with connect_host(gateway, mode) as host:
                listed = {tool.name: tool for tool in (await host.list_tools()).tools}
                assert listed.keys() == {"good", "rows", "ask_agent"}
                assert (listed["rows"].output_schema is not None) == (modern and mode == "auto")
        assert ("rows" in await list_problems(gateway)) == (not modern)


async def test_odd_handshake_resources_and_prompts_cost_only_themselves(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = RawServer(
        make_raw_tool("good"),
        modern=False,
        initialize={
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": True, "resources": {}, "prompts": True, "logging": None},
            "serverInfo": {"name": "odd", "icons": [{"x": 1}]},
        },
        resources__list={
            "resources": [{"uri": "x://a"}, {"name": "no uri"}, {"uri": "x://b", "name": "b", "size": "?"}]
        },
        resources__templates__list={"resourceTemplates": None},
        prompts__list={"prompts": [{"name": "p", "arguments": [{"name": "a"}, {"x": 1}]}, {"name": None}]},
    )
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {})}) as gateway:
        listed = (await gateway.get("/api/v1/mcp/resources")).body
        assert [item["uri"] for item in listed["resources"]] == ["x://a", "x://b"]
        assert listed["templates"] == []
        prompts = (await gateway.get("/api/v1/mcp/prompts")).body["prompts"]
        assert [(prompt["prompt"], prompt["arguments"]) for prompt in prompts] == [("p", [{"name": "a"}])]
        assert (await gateway.get("/api/v1/tools")).body["tools"][0]["name"] == "odd_good"


@ERAS
@pytest.mark.parametrize("cursor", ["", "same", 5], ids=["empty", "same", "number"])
async def test_repeated_cursor_ends_each_list(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, cursor: Any
) -> None:
    more = {"nextCursor": cursor}
    server = RawServer(
        modern=modern,
        tools__list={"tools": [make_raw_tool("t")], **more},
        resources__list={"resources": [{"uri": "x://one", "name": "one"}], **more},
        resources__templates__list={"resourceTemplates": [{"uriTemplate": "x://{id}", "name": "t"}], **more},
        prompts__list={"prompts": [{"name": "p"}], **more},
    )
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {})}) as gateway:
        resources = (await gateway.get("/api/v1/mcp/resources")).body
        prompts = (await gateway.get("/api/v1/mcp/prompts")).body["prompts"]
        assert [len(items) for items in (*resources.values(), prompts)] == [1, 1, 1]
        assert [tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]] == ["odd_t"]
    assert all(server.count(method) <= 4 for method in ("resources/list", "resources/templates/list", "prompts/list"))


async def test_surplus_tools_and_resources_are_told(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    tools = [make_raw_tool(f"t{number:04}") for number in range(1_200)]

    def list_page(params: dict[str, Any], _request: Any) -> dict[str, Any]:
        start = int(params.get("cursor") or 0)
        rest = {"nextCursor": str(start + 300)} if start + 300 < len(tools) else {}
        return {"tools": tools[start : start + 300], **rest}

    server = RawServer(
        tools__list=list_page,
        resources__list=lambda params, _request: {
            "resources": [], "nextCursor": str(int(params.get("cursor") or 0) + 1),
        },
    )  # fmt: skip
    async with serve_raw(database_url, simulator, tmp_path, {"odd": (server, {})}) as gateway:
        await gateway.get("/api/v1/mcp/resources")
        problems = (await gateway.get("/api/v1/mcp/servers")).body["servers"][0]["definition_problems"]
        told = {(problem["kind"], problem["left_out"]): problem["problem"] for problem in problems}
        assert told.keys() == {("tool", True), ("resource", True)}
        assert "1,000 items" in told["tool", True]
        assert "100 pages" in told["resource", True]
        names: list[str] = []
        for mode in ("auto", "legacy"):
            async with connect_host(gateway, mode) as host:
                page = await host.list_tools()
                names = [tool.name for tool in page.tools]
                assert len(names) == 500
                while page.next_cursor is not None:
                    page = await host.list_tools(cursor=page.next_cursor)
                    names += [tool.name for tool in page.tools]
                assert len(set(names)) == len(names) == 1_001


@ERAS
async def test_announcements_at_every_list_are_paced_and_notify_no_host(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = RawServer(make_raw_tool("t"), modern=modern)
    notifications: list[object] = []

    async def record(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            notifications.append(message)

    def list_and_announce(_params: Any, _request: Any) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(server.notify)
        return {"tools": server.tools}

    async with (
        serve_raw(database_url, simulator, tmp_path, {"odd": (server, {})}) as gateway,
        connect_host(gateway, "legacy", message_handler=record) as host,
    ):
        await eventually(lambda: server.streams)
        server.answers["tools/list"] = list_and_announce
        server.notify()
        before = server.count("tools/list")
        await eventually(lambda: server.count("tools/list") >= before + 2)
        await host.list_tools()  # from now on the host is notified
        before = server.count("tools/list")
        await asyncio.sleep(1)
        assert server.count("tools/list") - before <= 5
        assert not notifications
        server.tools.append(make_raw_tool("new"))
        await eventually(lambda: notifications)
        assert "odd_new" in {tool.name for tool in (await host.list_tools()).tools}
