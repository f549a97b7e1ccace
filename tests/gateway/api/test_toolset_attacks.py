"""Attacks on toolsets, by changes and at every endpoint."""

import json
from typing import Any

import pytest
from mcp import MCPError

from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_toolsets import connect, create
from tests.stack import JsonObject, serve_gateway


async def create_bound_key(keyring: Keyring) -> dict[str, str]:
    """Create a second key of the user `root`; return its headers."""
    unbound = keyring.secrets["root"]
    headers = await keyring.create_key("root", toolset="office")
    keyring.secrets["bound"], keyring.secrets["root"] = keyring.secrets["root"], unbound
    return headers


async def ask_to_remove(keyring: Keyring) -> tuple[str, str]:
    """Start a turn that waits; return its id and its question's."""
    call = {"name": "remove", "arguments": '{"task_id": 1}'}
    keyring.gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match="Remove it"))
    reply = await keyring.chat("root", "Remove it", approval="always", toolset="office")
    (question,) = reply.body["inputs"]
    return reply.body["turn_id"], question["input_id"]


async def finish(keyring: Keyring, turn_id: str, input_id: str) -> JsonObject:
    """Accept, and return the call of the finished turn."""
    body = {"input_id": input_id, "action": "accept"}
    answered = await keyring.post("root", f"/api/v1/turns/{turn_id}/input", body)
    assert answered.status == 200, answered.body

    async def load_call() -> JsonObject | None:
        turn = (await keyring.get("root", f"/api/v1/turns/{turn_id}")).body
        return turn["tool_calls"][0] if turn["status"] == "completed" else None

    call = await eventually(load_call)
    assert call is not None
    return call


async def add_task(keyring: Keyring) -> None:
    added = await keyring.post("root", "/api/v1/tools/add_task", {"title": "Buy milk"})
    assert added.body["outcome"] == "ok", added.body


async def list_tasks(keyring: Keyring) -> str:
    return json.dumps((await keyring.post("root", "/api/v1/tools/list_tasks", {})).body["structured"])


async def change(keyring: Keyring, *tools: Any) -> None:
    body = {"tools": list(tools)}
    assert await keyring.request_status("PUT", "root", "/api/v1/toolsets/office", body) == 200


async def test_approved_call_runs_no_other_tool_that_got_its_name(keyring: Keyring) -> None:
    await add_task(keyring)
    await create(keyring, tools=[{"tool": "complete_task", "name": "remove"}, "list_tasks"])
    turn_id, input_id = await ask_to_remove(keyring)
    await change(keyring, {"tool": "delete_task", "name": "remove"}, "list_tasks")
    call = await finish(keyring, turn_id, input_id)
    assert call["outcome"] != "ok"
    assert "Buy milk" in await list_tasks(keyring)


async def test_approved_call_follows_its_tool_to_a_new_name(keyring: Keyring) -> None:
    await add_task(keyring)
    await create(keyring, tools=[{"tool": "delete_task", "name": "remove"}])
    turn_id, input_id = await ask_to_remove(keyring)
    await change(keyring, {"tool": "delete_task", "name": "destroy"}, {"tool": "list_tasks", "name": "remove"})
    assert (await finish(keyring, turn_id, input_id))["outcome"] == "ok"
    assert "Buy milk" not in await list_tasks(keyring)


async def test_approved_call_of_a_tool_that_left_the_toolset_does_not_run(keyring: Keyring) -> None:
    await add_task(keyring)
    await create(keyring, tools=[{"tool": "delete_task", "name": "remove"}])
    turn_id, input_id = await ask_to_remove(keyring)
    await change(keyring, "calculator")
    assert (await finish(keyring, turn_id, input_id))["outcome"] != "ok"
    assert "Buy milk" in await list_tasks(keyring)


MESSAGES: JsonObject = {"messages": [{"role": "user", "content": "Call it"}]}
FACES: dict[str, tuple[str, JsonObject]] = {
    "native": ("/api/v1/chat", MESSAGES),
    "chat-completions": ("/v1/chat/completions", {**MESSAGES, "x_gateway": {"tools": "all"}}),
    "responses": ("/v1/responses", {"input": "Call it", "tools": [{"type": "mcp", "server_label": "tools"}]}),
    "messages": ("/v1/messages", {**MESSAGES, "max_tokens": 100}),
}
DELETE: JsonObject = {"task_id": 1}
CALLS: dict[str, JsonObject] = {
    "delete_task": DELETE,
    "batch": {"calls": [{"tool": "delete_task", "arguments": DELETE}]},
    "run_python": {"code": "print(await delete_task(task_id=1))"},
}


@pytest.mark.faults
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("tool", CALLS)
async def test_hostile_model_of_a_bound_key_reaches_no_other_tool(keyring: Keyring, face: str, tool: str) -> None:
    await add_task(keyring)
    await create(keyring, tools=["calculator"])
    await create_bound_key(keyring)
    call = {"name": tool, "arguments": json.dumps(CALLS[tool])}
    simulator = keyring.gateway.simulator
    simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match="Call it"))
    path, body = FACES[face]
    reply = await keyring.post("bound", path, {"model": "openai/gpt-oss-120b", **body})
    assert reply.status == 200, reply.body
    assert len(simulator.requests) == 2
    offered = json.dumps(simulator.requests[0].get("tools", []))
    assert "calculator" in offered
    assert "delete_task" not in offered
    assert "Buy milk" in await list_tasks(keyring)


async def test_endpoint_of_a_bound_key_leads_nowhere_else(keyring: Keyring) -> None:
    await create(keyring, tools=["calculator"])
    await create(keyring, "other", tools=["list_tasks"])
    bound = await keyring.create_key("bound", toolset="office")
    gateway = keyring.gateway
    for path in ("/mcp/other", "/mcp/other?toolset=office", "/mcp/./other", "/mcp/office/../other", "/mcp/Office"):
        async with gateway.session.post(f"{gateway.base_url}{path}", json={}, headers=bound) as response:
            assert response.status in (403, 404), path
    async with connect(gateway, "/mcp/office", bound, "legacy") as client:
        with pytest.raises(MCPError):
            await client.call_tool("list_tasks", {})
        with pytest.raises(MCPError):
            await client.read_resource("tasks://pending")
        with pytest.raises(MCPError):
            await client.session.subscribe_resource("tasks://pending")
        with pytest.raises(MCPError):
            await client.get_prompt("plan_day", {})
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []


async def test_session_of_one_key_is_not_that_of_another(keyring: Keyring) -> None:
    """Use the session of an unbound key with a bound one."""
    await create(keyring, tools=["calculator"])
    bound = await create_bound_key(keyring)
    gateway, root = keyring.gateway, keyring.headers("root")
    info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
    accept = {"Accept": "application/json, text/event-stream"}
    async with gateway.session.post(f"{gateway.base_url}/mcp", json=message, headers=root | accept) as opened:
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
    message = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    async with gateway.session.post(
        f"{gateway.base_url}/mcp", json=message, headers=bound | accept | session
    ) as response:
        assert response.status == 404


async def test_fork_by_a_bound_key_stays_in_its_toolset(keyring: Keyring) -> None:
    await add_task(keyring)
    await create(keyring, tools=["calculator"])
    await create_bound_key(keyring)
    keyring.gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[{"name": "list_tasks", "arguments": "{}"}], match="Call it"),
        Fault(kind="tool_calls", calls=[{"name": "delete_task", "arguments": '{"task_id": 1}'}], match="And this"),
    )
    first = await keyring.chat("root", "Call it")
    assert first.body["tool_calls"][0]["outcome"] == "ok"
    body = {"after_step": 1, "message": "And this"}
    fork = await keyring.post("bound", f"/api/v1/turns/{first.body['turn_id']}/fork", body)
    assert fork.status in (200, 404), fork.body
    assert "Buy milk" in await list_tasks(keyring)


async def test_bound_key_of_an_admin_administers_no_tools_and_servers(keyring: Keyring) -> None:
    await create(keyring, tools=["nowhere/*"])
    await keyring.create_key("bound", role="admin", toolset="office")
    server = "/api/v1/mcp/servers/tools"
    added = {"name": "more", "url": "https://example.com/mcp"}
    refused = {
        ("POST", "/api/v1/mcp/servers"): added,
        ("PATCH", server): {"disabled": True},
        ("PUT", server): {"url": "https://example.com/mcp"},
        ("DELETE", server): None,
        ("POST", f"{server}/tools/calculator/approve"): None,
        ("POST", f"{server}/instructions/approve"): None,
        ("GET", "/api/v1/tools/definitions"): None,
    }
    for (method, path), body in refused.items():
        assert await keyring.request_status(method, "bound", path, body) == 403, path
    for method in ("POST", "DELETE"):
        assert await keyring.request_status(method, "bound", f"{server}/sign-in") == 404
    assert (await keyring.get("root", "/ready")).body["mcp_servers"]
    assert (await keyring.get("bound", "/ready")).body["mcp_servers"] == []
    assert (await keyring.get("bound", "/api/v1/mcp/servers")).body["servers"] == []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("helper", "arguments", "budget"),
    [
        ("find_tools", {"query": "calculator expression search the web"}, 500),
        ("batch", {"calls": [{"tool": "calculator", "arguments": {"expression": "104729*1299709"}}]}, 24_000),
    ],
)
async def test_helpers_of_a_bound_key_know_its_toolset_alone(
    database_url: str, simulator: Simulator, tools_url: str, helper: str, arguments: JsonObject, budget: int
) -> None:
    settings: JsonObject = {"agent_batch_tool": True, "tool_token_budget": budget, "code_mode": "off"}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        await create(keyring, tools=["*_task*", "fetch_page"])
        await create_bound_key(keyring)
        call = {"name": helper, "arguments": json.dumps(arguments)}
        simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match="Call it"))
        reply = await keyring.chat("bound", "Call it")
        assert reply.status == 200, reply.body
        assert helper in {tool["function"]["name"] for tool in simulator.requests[0]["tools"]}
        assert "calculator" not in json.dumps(simulator.requests[0]["tools"])
        results = json.dumps([message for message in simulator.requests[1]["messages"] if message["role"] == "tool"])
        assert "web_search" not in results
        assert str(104_729 * 1_299_709) not in results


async def test_agent_of_a_bound_key_takes_no_other_toolset(keyring: Keyring) -> None:
    await create(keyring, tools=["calculator"])
    await create(keyring, "other", tools=["list_tasks"])
    await create_bound_key(keyring)
    message = {
        "messageId": "1",
        "role": "ROLE_USER",
        "parts": [{"text": "Call it"}],
        "metadata": {"toolset": "other"},
    }
    refused = await keyring.post("bound", "/a2a/v1/message:send", {"message": message})
    assert refused.status == 403, refused.body
    assert not keyring.gateway.simulator.requests
