import logging
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, ResourceTemplateReference

from tests.eventually import TIMEOUT_SECONDS, eventually
from tests.tools_server.conftest import ERAS, NO_DATABASE, connect, serve_tools, settings, text_of
from tests.tools_server.test_auth import token
from tools_server.server import ToolServer, create_server
from tools_server.tasks.store import TaskStore

READ_ONLY = {"calculator", "web_search", "fetch_page", "list_tasks"}


@pytest.fixture
def mcp() -> ToolServer:
    return create_server(settings(), TaskStore(NO_DATABASE))


async def test_every_tool_tells_a_model_what_it_needs_to_know(mcp: ToolServer) -> None:
    async with Client(mcp) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == READ_ONLY | {"add_task", "complete_task", "update_task", "delete_task"}
    for name, tool in tools.items():
        assert tool.title, name
        assert len(tool.description or "") > 40, name
        assert "  " not in (tool.description or ""), name
        assert tool.output_schema is not None, name
        assert tool.annotations is not None, name
        assert tool.annotations.read_only_hint is (name in READ_ONLY), name
        assert tool.annotations.destructive_hint is (name == "delete_task"), name
        assert tool.annotations.idempotent_hint is (name != "add_task"), name
        assert tool.annotations.open_world_hint is (name in {"web_search", "fetch_page"}), name
        for argument in tool.input_schema["properties"].values():
            assert argument["description"], name


@pytest.mark.parametrize(("name", "arguments"), [("nothing", {}), ("plan_day", {"extra": "x"})])
async def test_prompt_that_there_is_not_is_the_callers_mistake(mcp: ToolServer, name: str, arguments: Any) -> None:
    async with Client(mcp) as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, arguments)
    assert caught.value.code == INVALID_PARAMS


async def test_resource_and_prompt_are_described(mcp: ToolServer) -> None:
    async with Client(mcp) as client:
        [template] = (await client.list_resource_templates()).resource_templates
        [prompt] = (await client.list_prompts()).prompts
    assert (template.uri_template, bool(template.description)) == ("tasks://{status}", True)
    assert (prompt.name, bool(prompt.description)) == ("plan_day", True)


@pytest.mark.parametrize("era", ERAS)
async def test_both_eras_are_served_and_told_that_tools_may_change(era: str) -> None:
    async with serve_tools() as address, connect(address, era) as client:
        assert client.server_info is not None
        assert client.server_info.name == "tools"
        assert client.server_capabilities is not None
        assert client.server_capabilities.tools is not None
        assert client.server_capabilities.tools.list_changed
        assert "calculator" in (client.instructions or "")
        assert text_of(await client.call_tool("calculator", {"expression": "2*3"})) == "2*3 = 6"


async def test_status_of_the_resource_is_completed(mcp: ToolServer) -> None:
    async with Client(mcp) as client:
        ref = ResourceTemplateReference(type="ref/resource", uri="tasks://{status}")
        completed = await client.complete(ref, {"name": "status", "value": "p"})
        assert completed.completion.values == ["pending"]
        nothing = await client.complete(ref, {"name": "colour", "value": ""})
        assert nothing.completion.values == []


async def test_tools_list_may_be_kept_for_a_while(mcp: ToolServer) -> None:
    async with Client(mcp) as client:
        listed = await client.list_tools()
    assert (listed.ttl_ms, listed.cache_scope) == (60_000, "public")


async def test_unexpected_failure_is_generic_to_the_model_and_whole_in_the_log(
    mcp: ToolServer, caplog: pytest.LogCaptureFixture
) -> None:
    @mcp.tool()
    async def broken() -> str:
        """Break."""
        raise RuntimeError("password is hunter2")

    with caplog.at_level(logging.ERROR):
        async with Client(mcp) as client:
            result = await client.call_tool("broken", {})
    assert result.is_error
    assert text_of(result) == "Error executing tool broken"
    assert "hunter2" in caplog.text


async def test_health_tells_of_the_database(database_url: str) -> None:
    async def health(address: str) -> dict[str, Any]:
        async with httpx2.AsyncClient(timeout=30) as http:
            response = await http.get(f"{address}/health")
        assert response.status_code == 200
        return response.json()

    async with serve_tools(database_url=database_url) as address:
        status = await health(address)
        assert (status["status"], status["database"]) == ("healthy", True)
        assert status["uptime_seconds"] >= 0
        assert status["version"]
    async with serve_tools() as address:
        status = await health(address)
        assert (status["status"], status["database"]) == ("degraded", False)


async def test_legacy_session_left_open_expires_and_sessions_are_bounded() -> None:
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    limits = {"tools_server_session_idle_seconds": 0.5, "tools_server_max_sessions": 2, "tools_server_secret": None}
    async with (
        serve_tools(**limits) as address,
        httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http,
        AsyncExitStack() as in_use,
    ):

        async def open_session() -> httpx2.Response:
            return await http.post(f"{address}/mcp", json=request, headers=headers)

        async def opens_session() -> bool:
            return (await open_session()).status_code == 200

        async def uses_session() -> bool:
            """Open a session and its stream, unless a stalled machine lets it expire in between."""
            session = headers | {"Mcp-Session-Id": (await open_session()).headers["mcp-session-id"]}
            stream = await in_use.enter_async_context(http.stream("GET", f"{address}/mcp", headers=session))
            return stream.status_code == 200

        for _ in range(2):
            await eventually(uses_session)
        assert (await open_session()).status_code == 503
        await in_use.aclose()
        await eventually(opens_session)


async def test_resumption_of_a_stream_is_refused() -> None:
    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
        opened = await http.post(f"{address}/mcp", json=request, headers=headers)
        session = headers | {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Last-Event-ID": "7"}
        refused = await http.get(f"{address}/mcp", headers=session)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32600)


async def test_sessions_of_one_user_leave_room_for_others() -> None:
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    limits = {"tools_server_max_user_sessions": 2, "tools_server_max_sessions": 3}
    async with (
        serve_tools(**limits) as address,
        httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http,
        AsyncExitStack() as in_use,
    ):

        async def open_session(user: str) -> tuple[int, dict[str, str]]:
            own = headers | {"Authorization": f"Bearer {token(sub=user)}"}
            response = await http.post(f"{address}/mcp", json=request, headers=own)
            session = response.headers.get("mcp-session-id")
            return response.status_code, own | ({"Mcp-Session-Id": session} if session else {})

        async def list_tools(session: dict[str, str]) -> int:
            return (await http.post(f"{address}/mcp", json=listing, headers=session)).status_code

        _, of_ann = await open_session("ann")
        of_eve = [(await open_session("eve"))[1] for _ in range(5)]
        assert [await list_tools(session) for session in (of_ann, *of_eve)] == [200, 404, 404, 404, 200, 200]
        for session in of_eve[3:]:
            await in_use.enter_async_context(http.stream("GET", f"{address}/mcp", headers=session))
        assert (await open_session("eve"))[0] == 503
        assert (await open_session("bob"))[0] == 200  # it replaces the idle session of ann
        assert await list_tools(of_ann) == 404
        await in_use.aclose()

        async def opens_session() -> bool:
            return (await open_session("eve"))[0] == 200

        await eventually(opens_session)
