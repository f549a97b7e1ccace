"""Named subsets of the tools, at every way to the tools."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from gateway.config import Settings
from gateway.domain.messages import LOCAL_PRINCIPAL, TurnRecord
from gateway.domain.toolsets import ToolsetDefinition
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_tool_offer import FORMATS, all_formats, get_offered
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.stack import Gateway, JsonObject, serve_asgi, serve_gateway

OFFICE: JsonObject = {
    "description": "Sums and tasks.",
    "tools": [
        {"tool": "tools/calculator", "name": "compute", "description": "Work out a sum.", "title": "Sums"},
        "tools/*_task*",
        "tools/away",
    ],
}
TASKS = {"add_task", "complete_task", "delete_task", "get_task", "list_tasks", "update_task"}


@asynccontextmanager
async def connect(gateway: Gateway, path: str, headers: dict[str, str], mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}{path}", http_client=http), mode=mode) as client,
    ):
        yield client


async def create(keyring: Keyring, name: str = "office", **changes: Any) -> JsonObject:
    created = await keyring.post("root", "/api/v1/toolsets", {"name": name} | OFFICE | changes)
    assert created.status == 201, created.body
    return created.body


@pytest.mark.faults
async def test_every_way_to_the_tools_shows_the_same_toolset(keyring: Keyring) -> None:
    created = await create(keyring)
    gateway, names = keyring.gateway, {tool["name"] for tool in created["shown"]}
    assert "compute" in names
    assert "calculator" not in names
    assert names - {"compute"} <= TASKS
    assert created["missing"] == ["tools/away"]
    bound = await keyring.create_key("bound", toolset="office")
    listed = (await keyring.get("bound", "/api/v1/tools")).body
    assert {tool["name"] for tool in listed["tools"]} == names
    assert next(tool["description"] for tool in listed["tools"] if tool["name"] == "compute") == "Work out a sum."
    for path, headers in (("/mcp/office", keyring.headers("root")), ("/mcp", bound)):
        for mode in ("legacy", "2026-07-28"):
            async with connect(gateway, path, headers, mode) as client:
                tools = {tool.name: tool for tool in (await client.list_tools()).tools}
                assert set(tools) == names
                assert (tools["compute"].title, tools["compute"].description) == ("Sums", "Work out a sum.")
                result = await client.call_tool("compute", {"expression": "6*7"})
                assert isinstance(result.content[0], TextContent)
                assert "42" in result.content[0].text
                for unknown in ("calculator", "web_search", "ask_agent"):
                    with pytest.raises(MCPError, match="Unknown tool"):
                        await client.call_tool(unknown, {"expression": "1"})
    direct = await keyring.post("bound", "/api/v1/tools/compute", {"expression": "6*7"})
    assert (direct.status, direct.body["tool"], direct.body["outcome"]) == (200, "compute", "ok")
    assert (await keyring.post("bound", "/api/v1/tools/calculator", {"expression": "1"})).status == 404


@all_formats
async def test_requests_name_a_toolset_in_each_format(keyring: Keyring, name: str) -> None:
    await create(keyring)
    path, body, tool = FORMATS[name]
    field: JsonObject = {"toolset": "office"} if name == "native" else {"x_gateway": {"toolset": "office"}}
    reply = await keyring.post("root", path, body | field)
    assert reply.status == 200, reply.body
    offered = get_offered(keyring.gateway.simulator)
    assert "compute" in offered
    assert offered - {"compute"} <= TASKS
    reply = await keyring.post("root", path, body | field | {"tools": [tool]})
    assert get_offered(keyring.gateway.simulator) == offered | {"get_weather"}, reply.body
    unknown = {"toolset": "none"} if name == "native" else {"x_gateway": {"toolset": "none"}}
    refused = await keyring.post("root", path, body | unknown)
    assert refused.status == 404
    assert "toolset_not_found" in json.dumps(refused.body)


async def test_renamed_tool_runs_by_its_own_name_and_keeps_its_identity(keyring: Keyring) -> None:
    await create(keyring)
    gateway = keyring.gateway
    gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[{"name": "compute", "arguments": '{"expression": "6*7"}'}], match="Sum")
    )
    async with gateway.session.post(
        f"{gateway.base_url}/api/v1/chat/stream",
        json={"messages": [{"role": "user", "content": "Sum"}], "toolset": "office"},
        headers=keyring.headers("root"),
    ) as response:
        text = await response.text()
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    call = next(event for event in events if event.get("call_id") and "tool" in event)
    assert (call["tool"], call["original_name"], call["server"]) == ("compute", "calculator", "tools")
    assert next(event["outcome"] for event in events if "outcome" in event) == "ok"
    started = next(event for event in events if "warnings" in event)
    assert any("tools/away" in warning for warning in started["warnings"])
    connection = await asyncpg.connect(gateway.state.database.connector.dsn)
    try:
        assert await connection.fetchval("SELECT tool FROM tool_calls ORDER BY started_at DESC LIMIT 1") == "calculator"
    finally:
        await connection.close()


async def test_program_and_search_use_the_names_of_the_toolset(keyring: Keyring) -> None:
    await create(keyring)
    bound = await keyring.create_key("bound", toolset="office")
    async with connect(keyring.gateway, "/mcp?mode=code", bound) as client:
        (tool,) = (await client.list_tools()).tools
        assert "compute(" in (tool.description or "")
        assert "calculator(" not in (tool.description or "")
        result = await client.call_tool("run_python", {"code": 'print((await compute(expression="6*7")))'})
        assert isinstance(result.content[0], TextContent)
        assert "42" in result.content[0].text


@pytest.mark.faults
async def test_rules_of_administrators_match_original_names(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    disguised = {"tools": [{"tool": "calculator", "name": "add_task"}, {"tool": "add_task", "name": "calculator"}]}
    toolsets = {"disguised": ToolsetDefinition.model_validate(disguised)}
    async with serve_gateway(
        database_url, simulator, tools_url, toolsets=toolsets, tools_deny=("tools/add_task",)
    ) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        shown = (await keyring.get("root", "/api/v1/toolsets/disguised")).body
        assert [(tool["name"], tool["tool"]) for tool in shown["shown"]] == [("add_task", "calculator")]
        assert shown["missing"] == ["add_task"]
        await keyring.create_key("narrow", tools=("list_tasks",), toolset="disguised")
        assert (await keyring.get("narrow", "/api/v1/tools")).body["tools"] == []
        await keyring.create_key("sums", tools=("calculator",), toolset="disguised")
        direct = await keyring.post("sums", "/api/v1/tools/add_task", {"expression": "6*7"})
        assert (direct.status, direct.body["outcome"]) == (200, "ok")
        changed = await keyring.request_status("PUT", "root", "/api/v1/toolsets/disguised", {"tools": []})
        assert (changed, await keyring.request_status("DELETE", "root", "/api/v1/toolsets/disguised")) == (409, 409)


async def test_approval_of_a_renamed_tool_is_asked_for(keyring: Keyring) -> None:
    await create(keyring, tools=[{"tool": "delete_task", "name": "remove"}])
    keyring.gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[{"name": "remove", "arguments": '{"task_id": 1}'}], match="Remove it")
    )
    reply = await keyring.chat("root", "Remove it", toolset="office", approval="destructive")
    (question,) = reply.body["inputs"]
    assert question["kind"] == "approval"
    assert reply.body["tool_calls"][0]["tool"] == "remove"


@pytest.mark.faults
async def test_bound_key_reaches_nothing_else(keyring: Keyring) -> None:
    await create(keyring)
    await create(keyring, "other", tools=["web_search"])
    await keyring.create_key("bound", role="admin", toolset="office")
    assert (await keyring.chat("bound", "Hello", toolset="office")).status == 200
    other = await keyring.chat("bound", "Hello", toolset="other")
    assert (other.status, other.body["error"]["code"]) == (403, "forbidden")
    assert {item["name"] for item in (await keyring.get("bound", "/api/v1/toolsets")).body["toolsets"]} == {"office"}
    assert (await keyring.get("bound", "/api/v1/toolsets/other")).status == 404
    for method, path in (("PUT", "/api/v1/toolsets/office"), ("DELETE", "/api/v1/toolsets/office")):
        assert await keyring.request_status(method, "bound", path, {"tools": ["*"]}) == 403
    widened = await keyring.post("bound", "/api/v1/toolsets", {"name": "mine", "tools": ["*"]})
    assert widened.status == 403
    child = (await keyring.post("bound", "/api/v1/keys", {})).body
    assert child["toolset"] == "office"
    assert (await keyring.post("bound", "/api/v1/keys", {"toolset": "other"})).status == 403
    assert (await keyring.post("root", "/api/v1/keys", {"toolset": "nowhere"})).status == 404
    async with keyring.gateway.session.post(
        f"{keyring.gateway.base_url}/mcp/other", json={}, headers=keyring.headers("bound")
    ) as response:
        assert response.status == 403
    assert (await keyring.get("bound", "/api/v1/mcp/resources")).body["resources"] == []
    assert (await keyring.get("bound", "/api/v1/mcp/prompts")).body["prompts"] == []
    assert (await keyring.get("bound", "/api/v1/mcp/resources/read?uri=tasks://pending")).status == 404
    assert await keyring.request_status("DELETE", "root", "/api/v1/toolsets/office") == 204
    assert (await keyring.get("bound", "/api/v1/tools")).body["tools"] == []
    gone = await keyring.chat("bound", "Hello")
    assert (gone.status, gone.body["error"]["code"]) == (404, "toolset_not_found")


async def test_toolset_names_resources_and_prompts(keyring: Keyring) -> None:
    await create(keyring, resources=["tools/tasks://pend*"], prompts=["plan_day"])
    await keyring.create_key("bound", toolset="office")
    assert (await keyring.get("bound", "/api/v1/mcp/prompts")).body["prompts"][0]["name"] == "plan_day"
    assert (await keyring.post("bound", "/api/v1/mcp/prompts/plan_day", {})).status == 200
    async with connect(keyring.gateway, "/mcp", keyring.headers("bound")) as client:
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["plan_day"]


async def test_unknown_toolset_of_the_endpoint_is_not_found(gateway: Gateway) -> None:
    for method in ("POST", "GET", "DELETE"):
        async with gateway.session.request(method, f"{gateway.base_url}/mcp/nowhere", json={}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "toolset_not_found")


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ({"tools": [{"tool": "calc*", "name": "sum"}]}, "wildcards"),
        ({"tools": [{"tool": "calculator", "name": "run_python"}]}, "own tools"),
        ({"tools": [{"tool": "a", "name": "x"}, {"tool": "b", "name": "x"}]}, "same name"),
        ({"tools": [f"a{n}*" for n in range(51)]}, "wildcards"),
        ({"tools": [{"tool": "calculator", "name": "a b"}]}, "name"),
        ({"tools": ["calculator"], "more": 1}, "more"),
        ({"tools": ["calculator"], "name": "server-card"}, "server card"),
    ],
)
async def test_invalid_toolset_is_refused(gateway: Gateway, definition: JsonObject, problem: str) -> None:
    reply = await gateway.post("/api/v1/toolsets", {"name": "bad"} | definition)
    assert reply.status == 422
    assert problem in reply.body["error"]["message"]


@pytest.mark.faults
async def test_changes_reach_other_workers_and_listening_hosts(workers: list[Gateway]) -> None:
    first, second = workers
    assert (await first.post("/api/v1/toolsets", {"name": "few", "tools": ["calculator"]})).status == 201
    await eventually(lambda: second.state.toolsets.find_toolset("few") is not None)
    changed = asyncio.Event()

    async def on_message(message: Any) -> None:
        if type(message).__name__ == "ToolListChangedNotification":
            changed.set()

    async with (
        httpx2.AsyncClient(timeout=30) as http,
        Client(
            streamable_http_client(f"{second.base_url}/mcp/few", http_client=http),
            mode="legacy",
            message_handler=on_message,
        ) as client,
    ):
        assert [tool.name for tool in (await client.list_tools()).tools] == ["calculator"]
        async with first.session.put(
            f"{first.base_url}/api/v1/toolsets/few", json={"tools": [{"tool": "calculator", "name": "sums"}]}
        ) as response:
            assert response.status == 200
        await asyncio.wait_for(changed.wait(), 30)
        assert [tool.name for tool in (await client.list_tools()).tools] == ["sums"]


async def test_turn_of_another_worker_has_the_toolset_without_authentication(gateway: Gateway) -> None:
    assert (await gateway.post("/api/v1/toolsets", {"name": "few", "tools": ["calculator"]})).status == 201
    reply = await gateway.chat("Hello", toolset="few")
    request = await gateway.state.turns.load_request(UUID(reply.body["turn_id"]), LOCAL_PRINCIPAL)
    record = TurnRecord(UUID(reply.body["turn_id"]), LOCAL_PRINCIPAL.user, request, "model")
    specs = gateway.state.toolbox.list_specs(record.principal)
    assert [spec.name for spec in specs] == ["calculator"]


@pytest.mark.faults
async def test_tools_that_appear_later_join_their_toolset(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = RawServer(make_raw_tool("one"), make_raw_tool("more_two"))
    async with AsyncExitStack() as stack:
        url = f"{await stack.enter_async_context(serve_asgi(server))}/mcp"
        toolsets = {
            "later": ToolsetDefinition.model_validate(
                {"tools": ["more/more_two", {"tool": "more/one", "name": "more_more_two"}]}
            )
        }
        gateway = await stack.enter_async_context(serve_gateway(database_url, simulator, None, toolsets=toolsets))
        before = (await gateway.get("/api/v1/toolsets/later")).body
        assert (before["shown"], before["missing"]) == ([], ["more/more_two", "more/one"])
        added = await gateway.post("/api/v1/mcp/servers", {"name": "more", "url": url})
        assert added.status == 201, added.body
        await eventually(lambda: len(gateway.state.toolbox.list_specs()) == 2)
        after = (await gateway.get("/api/v1/toolsets/later")).body
        assert [(tool["name"], tool["tool"]) for tool in after["shown"]] == [("more_more_two", "one")]
        assert after["missing"] == ["more/more_two"]  # its name was given to another tool
        async with connect(gateway, "/mcp/later", {}) as client:
            await client.call_tool("more_more_two", {})
        assert [params["name"] for method, params in server.calls if method == "tools/call"] == ["one"]


async def test_card_and_catalog_describe_the_endpoint_to_anyone(keyring: Keyring) -> None:
    gateway = keyring.gateway
    async with gateway.session.get(f"{gateway.base_url}/.well-known/mcp/catalog.json") as response:
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
        (entry,) = (await response.json())["entries"]
    path = entry["url"].partition("//")[2].partition("/")[2]
    async with gateway.session.get(f"{gateway.base_url}/{path}") as response:
        assert (response.status, response.content_type) == (200, "application/mcp-server-card+json")
        card = await response.json(content_type=None)
    (remote,) = card["remotes"]
    assert remote["type"] == "streamable-http"
    assert remote["url"].endswith("/mcp")
    async with connect(gateway, "/mcp", keyring.headers("root")) as client:
        assert client.server_info is not None
        assert card["name"].endswith(f"/{client.server_info.name}")
        assert card["version"] == client.server_info.version
        assert client.protocol_version in remote["supportedProtocolVersions"]


def test_setting_reads_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLSETS", '{"office": {"tools": ["calculator"]}}')
    assert Settings().toolsets["office"].entries[0].tool == "calculator"
