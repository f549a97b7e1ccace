"""Tests of malformed tool calls on their whole way.

It leads from the bytes of the model's server to the tool, or to the client.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool

from gateway.simulator import Simulator
from tests.scripted_model import ScriptedAnswer, ScriptedModelServer, refuse_call, serve_scripted_model, stream_call
from tests.stack import Gateway, serve_asgi, serve_gateway

CORPUS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "llm" / "malformed_calls.json").read_text(encoding="utf-8")
)
ENTRIES: list[dict[str, Any]] = CORPUS["entries"]
CLIENT_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in CORPUS["schemas"].items()
]


def write_answer(entry: dict[str, Any]) -> ScriptedAnswer:
    if entry["form"] == "generation":
        return refuse_call(entry["text"])
    return stream_call(entry["name"], entry["arguments"])


def sort_calls(calls: list[dict[str, Any]]) -> list[str]:
    """Sort calls: those of one step run at the same time."""
    return sorted(json.dumps(call, sort_keys=True) for call in calls)


def is_written(call: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Return whether a call is one of an entry, without a change."""
    texts = [entry.get("arguments", ""), call["arguments"]]
    try:
        written, received = (json.loads(text or "{}") for text in texts)
    except ValueError:
        written, received = texts
    return call["name"] == entry.get("name") and received == written


@asynccontextmanager
async def serve_recorder(calls: list[dict[str, Any]]) -> AsyncGenerator[str]:
    """Serve the tools of the corpus. They record their calls."""

    async def list_tools(*_: object) -> ListToolsResult:
        tools = [Tool(name=name, input_schema=schema) for name, schema in CORPUS["schemas"].items()]
        return ListToolsResult(tools=tools)

    async def call_tool(_: object, params: Any) -> CallToolResult:
        calls.append({"name": params.name, "arguments": params.arguments or {}})
        return CallToolResult(content=[TextContent(text="recorded")])

    server: Server[Any] = Server("recorder", on_list_tools=list_tools, on_call_tool=call_tool)
    async with serve_asgi(server.streamable_http_app(stateless_http=True)) as url:
        yield f"{url}/mcp"


@pytest.fixture
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.mark.timeout(300)
async def test_each_readable_call_runs_as_it_was_meant(
    database_url: str, simulator: Simulator, model: ScriptedModelServer
) -> None:
    """The tools get the mended arguments.

    What cannot be read is asked again, and no turn fails.
    """
    recorded: list[dict[str, Any]] = []
    wrong: dict[str, Any] = {}
    async with (
        serve_recorder(recorded) as tools_url,
        serve_gateway(database_url, simulator, tools_url, groq_base_url=model.url) as gateway,
    ):
        for entry in ENTRIES:
            recorded.clear()
            model.script_answers(write_answer(entry))
            reply = await gateway.chat_stream("Run it.", store=False)
            is_right = sort_calls(recorded) == sort_calls(entry["expect"].get("calls", []))
            if not is_right or not reply.get_event_data("turn.completed") or len(model.requests) < 2:
                wrong[entry["id"]] = recorded.copy(), reply.status, reply.body, reply.events[-2:]
    assert wrong == {}


async def read_client_calls(gateway: Gateway) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": "Run it."}], "tools": CLIENT_TOOLS}
    headers = {"X-Gateway-Tools": "none"}
    async with gateway.session.post(f"{gateway.base_url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        message = (await response.json())["choices"][0]["message"]
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return [{"name": function["name"], "arguments": function["arguments"]} for function in functions]


@pytest.mark.timeout(300)
async def test_client_gets_each_readable_call_as_it_was_meant(
    database_url: str, simulator: Simulator, model: ScriptedModelServer
) -> None:
    wrong: dict[str, Any] = {}
    async with serve_gateway(database_url, simulator, None, groq_base_url=model.url) as gateway:
        for entry in ENTRIES:
            model.script_answers(write_answer(entry))
            calls = await read_client_calls(gateway)
            if "calls" in entry["expect"]:
                read = [call | {"arguments": json.loads(call["arguments"])} for call in calls]
                is_right = sort_calls(read) == sort_calls(entry["expect"]["calls"])
            else:  # asked again, or left to the client as it was written
                is_right = all(is_written(call, entry) for call in calls)
            if not is_right:
                wrong[entry["id"]] = calls
    assert wrong == {}
