"""Tests of tool selection and tool search with too many tools."""

import json

import msgspec
import pytest
from mcp.server.mcpserver import MCPServer

from gateway.agent.tool_search import FIND_TOOLS, ToolSelection, search_tools, select_tools
from gateway.domain.messages import ToolSpec
from gateway.simulator import Simulator
from tests.stack import serve_asgi, serve_gateway


def make_spec(name: str, description: str = "") -> ToolSpec:
    return ToolSpec(name, "s", name, description or f"The tool {name}.", {"type": "object"})


MANY_TOOLS = tuple(make_spec(f"tool_{number}") for number in range(300))


def test_all_tools_are_offered_if_they_fit() -> None:
    assert select_tools(MANY_TOOLS[:128], always=(), max_tokens=24_000) == ToolSelection(MANY_TOOLS[:128])


@pytest.mark.parametrize(("specs", "budget"), [(MANY_TOOLS, 24_000), (MANY_TOOLS[:100], 500)])
def test_excess_tools_are_hidden_behind_tool_search(specs: tuple[ToolSpec, ...], budget: int) -> None:
    selection = select_tools(specs, always=("tool_99",), max_tokens=budget)
    names = [tool.name for tool in selection.tools]
    assert names[-1] == FIND_TOOLS
    assert names[:-1] == [tool.name for tool in specs if tool.name in names]
    assert "tool_99" in names
    assert len(names) < 128
    assert {*names[:-1], *(tool.name for tool in selection.hidden)} == {tool.name for tool in specs}
    assert select_tools(specs, always=("tool_99",), max_tokens=budget) == selection


@pytest.mark.parametrize("own", [100, 120, 125])
def test_tools_of_the_client_leave_room_for_the_search(own: int) -> None:
    client_tools = tuple(msgspec.structs.replace(spec, client=True) for spec in MANY_TOOLS[:own])
    selection = select_tools(MANY_TOOLS[200:] + client_tools, always=(), max_tokens=24_000)
    assert len(selection.tools) < 128
    assert selection.tools[-1].name == FIND_TOOLS
    assert [tool for tool in selection.tools if tool.client] == list(client_tools)


@pytest.mark.parametrize(
    ("query", "first_name"),
    [
        ("create an issue", "github_create_issue"),
        ("issues", "github_list_issues"),
        ("send mail", "gmail_sendMessage"),
        ("weather", "forecast"),
        ("nothing like it", None),
        ("", None),
    ],
)
def test_search_ranks_the_matching_tool_first(query: str, first_name: str | None) -> None:
    hidden = (
        make_spec("github_list_issues", "List the issues of a repository."),
        make_spec("github_create_issue", "Open a new issue in a repository."),
        make_spec("gmail_sendMessage", "Send a mail."),
        make_spec("forecast", "The weather of the next days."),
    )
    result = search_tools(query, hidden)
    assert result.structured["loaded"][:1] == ([first_name] if first_name else [])


async def test_model_finds_a_tool_and_calls_it_in_the_next_step(database_url: str, simulator: Simulator) -> None:
    mcp = MCPServer("many", log_level="ERROR")
    for number in range(300):

        async def run_tool(number: int = number) -> str:
            return f"ran {number}"

        mcp.add_tool(run_tool, name=f"t{number:03}", description=f"Does thing number {number}.")
    async with (
        serve_asgi(mcp.streamable_http_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        prompt = 'call find_tools with {"query": "thing number 287"} then t287 with {}'
        reply = await gateway.chat_stream(prompt)
        offered = [[tool["function"]["name"] for tool in request["tools"]] for request in simulator.requests]
        assert "t287" not in offered[0]
        assert offered[0] == offered[1][: len(offered[0])]
        assert offered[1][len(offered[0])] == "t287"
        assert len(json.dumps(offered[1])) < 2_000
        search_result, call_result = reply.get_event_data("tool.result")
        assert search_result["structured"]["loaded"][0] == "t287"
        assert call_result["content"][0]["text"] == "ran 287"
