"""Tests of the gateway's `/mcp` endpoint with hosts of both protocols."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitRequestParams, ElicitResult, PromptReference, ToolListChangedNotification
from pydantic import SecretStr

from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import Gateway, serve_asgi, serve_gateway

MODES = ["auto", "legacy"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def connect_host(gateway: Gateway, mode: str, **options: Any) -> AsyncGenerator[Client]:
    headers, path = options.pop("headers", {}), options.pop("path", "/mcp")
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}{path}", http_client=http), mode=mode, **options) as client,
    ):
        yield client


@pytest.fixture
async def trial() -> TrialServer:
    return TrialServer()


@pytest.fixture(params=[True, False], ids=["modern-server", "legacy-server"])
async def trial_gateway(
    request: pytest.FixtureRequest, database_url: str, simulator: Simulator, trial: TrialServer
) -> AsyncGenerator[Gateway]:
    """A gateway connected to the trial server."""
    async with (
        serve_asgi(trial.create_app(modern=request.param)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        yield gateway


def get_text(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


async def test_host_lists_and_calls_all_tools(gateway: Gateway, mode: str) -> None:
    async with connect_host(gateway, mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"calculator", "add_task", "ask_agent"} <= set(tools)
        assert tools["calculator"].annotations is not None
        assert tools["calculator"].annotations.read_only_hint is True
        result = await client.call_tool("calculator", {"expression": "5*9"})
        assert (get_text(result), result.structured_content) == ("5*9 = 45", {"expression": "5*9", "result": 45})
        failed = await client.call_tool("calculator", {"expression": "1/0"})
        assert failed.is_error
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("no_such_tool", {})
        assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")


async def test_ask_agent_answers_and_continues_a_conversation(
    gateway: Gateway, mode: str, db: asyncpg.Connection
) -> None:
    steps: list[str | None] = []

    async def record_progress(_done: float, _total: float | None, message: str | None) -> None:
        steps.append(message)

    async with connect_host(gateway, mode) as client:
        first = await client.call_tool("ask_agent", {"prompt": "What is 23*19?"}, progress_callback=record_progress)
        assert "437" in get_text(first)
        assert steps == ["calculator …"]  # it precedes the result
        conversation = first.structured_content
        assert conversation is not None
        second = await client.call_tool(
            "ask_agent", {"prompt": "What did I ask?", "conversation_id": conversation["conversation_id"]}
        )
        assert "23*19" in get_text(second)
        failed = await client.call_tool("ask_agent", {"prompt": "Hello", "model": "no-such-model"})
        assert failed.is_error
        for prompt in (" ", "x" * 400_001):
            assert (await client.call_tool("ask_agent", {"prompt": prompt})).is_error
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 2


async def test_cancelled_ask_agent_call_cancels_the_turn(gateway: Gateway, mode: str) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="stall", after_chunks=40))
    async with connect_host(gateway, mode) as client:
        call_task = asyncio.create_task(client.call_tool("ask_agent", {"prompt": "count to 500"}))
        await gateway.simulator.wait_until(lambda simulator: simulator.open_streams == 1)
        call_task.cancel()
        await gateway.simulator.wait_until(lambda simulator: simulator.cancelled_streams == 1)


async def test_cancellation_and_progress_are_forwarded(trial_gateway: Gateway, trial: TrialServer, mode: str) -> None:
    progress: list[tuple[float, str | None]] = []

    async def record_progress(done: float, _total: float | None, message: str | None) -> None:
        progress.append((done, message))

    async with connect_host(trial_gateway, mode) as client:
        assert get_text(await client.call_tool("chatter", {}, progress_callback=record_progress)) == "done"
        await eventually(lambda: progress == [(1, "half"), (2, "whole")])
        call_task = asyncio.create_task(client.call_tool("hang_write", {}))
        async with asyncio.timeout(30):
            await trial.started.wait()
            call_task.cancel()
            await trial.cancelled.wait()


async def test_resources_prompts_and_completions_are_forwarded(trial_gateway: Gateway, mode: str) -> None:
    async with connect_host(trial_gateway, mode) as client:
        assert [r.uri for r in (await client.list_resources()).resources] == ["trial://greeting"]
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["trial://greeting/{name}"]
        for uri, expected in (("trial://greeting", "Good day."), ("trial://greeting/Ada", "Good day, Ada.")):
            assert (await client.read_resource(uri)).contents[0].text == expected  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="No connected server has"):
            await client.read_resource("trial://nothing/at/all")
        assert [p.name for p in (await client.list_prompts()).prompts] == ["summary"]
        prompt = await client.get_prompt("summary", {"subject": "camels"})
        assert prompt.messages[0].content.text == "Sum up camels."  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="no prompt"):
            await client.get_prompt("nothing", {})
        done = await client.complete(PromptReference(name="summary"), {"name": "subject", "value": "ca"})
        assert done.completion.values == ["camels"]


@pytest.mark.parametrize("modern_server", [True, False], ids=["modern-server", "legacy-server"])
async def test_server_elicitation_reaches_the_host(
    gateway: Gateway, database_url: str, simulator: Simulator, trial: TrialServer, mode: str, modern_server: bool
) -> None:
    async def accept(_context: Any, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        content: Any = {"task_id": 2} if modern_server else {"row": "front"}
        return ElicitResult(action="accept", content=content)

    questions: list[str] = []
    if modern_server:
        async with connect_host(gateway, mode, elicitation_callback=accept) as client:
            for _ in range(2):
                await client.call_tool("add_task", {"title": "buy milk"})
            result = await client.call_tool("delete_task", {"title": "buy milk"})
        assert "#2" in get_text(result)
        assert len(questions) == 1
        return
    async with (
        serve_asgi(trial.create_app(modern=False)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as legacy_gateway,
        connect_host(legacy_gateway, mode, elicitation_callback=accept) as client,
    ):
        result = await client.call_tool("reserve", {"seats": 2})
    assert get_text(result) == "2 at the front"


async def test_listening_host_is_notified_of_new_tools(
    gateway: Gateway, database_url: str, simulator: Simulator, trial: TrialServer
) -> None:
    async with (
        serve_asgi(trial.create_app()) as url,
        connect_host(gateway, "auto") as client,
        client.listen(tools_list_changed=True) as changes,
    ):
        body = {"name": "extra", "url": f"{url}/mcp"}
        assert (await gateway.post("/api/v1/mcp/servers", body)).status == 201
        async with asyncio.timeout(30):
            async for _ in changes:
                names = {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}
                if "extra_echo" in names:
                    break


async def test_legacy_host_is_notified_of_new_tools(gateway: Gateway, trial: TrialServer) -> None:
    changed = asyncio.Event()

    async def on_message(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            changed.set()

    async with (
        serve_asgi(trial.create_app()) as url,
        connect_host(gateway, "legacy", message_handler=on_message) as client,
    ):
        await client.list_tools()
        async with asyncio.timeout(30):
            assert (await gateway.post("/api/v1/mcp/servers", {"name": "extra", "url": f"{url}/mcp"})).status == 201
            while "extra_echo" not in {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}:
                await changed.wait()
                changed.clear()


async def test_mcp_endpoint_requires_the_api_key(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, api_key=SecretStr("the-right-key-16")) as gateway:
        response = await gateway.post("/mcp", {})
        assert (response.status, response.body["error"]["code"]) == (401, "not_authenticated")
        assert response.headers["www-authenticate"] == "Bearer"
        async with connect_host(gateway, "auto", headers={"Authorization": "Bearer the-right-key-16"}) as client:
            assert get_text(await client.call_tool("calculator", {"expression": "1+1"})) == "1+1 = 2"


async def test_path_is_exact_and_foreign_origins_are_refused(gateway: Gateway) -> None:
    async with gateway.session.post(f"{gateway.base_url}/mcp/", json={}, allow_redirects=False) as response:
        assert response.status == 400  # as without the last slash
    headers = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    async with gateway.session.post(f"{gateway.base_url}/mcp", data=b"{}", headers=headers) as response:
        assert response.status == 403


# --- the same over the HTTP API, and for models


async def test_resources_and_prompts_are_read_over_http(trial_gateway: Gateway) -> None:
    listed = (await trial_gateway.get("/api/v1/mcp/resources")).body
    assert (listed["resources"][0]["uri"], listed["resources"][0]["server"]) == ("trial://greeting", "tools")
    assert listed["templates"][0]["uriTemplate"] == "trial://greeting/{name}"
    read = await trial_gateway.get("/api/v1/mcp/resources/read?uri=trial://greeting/Ada")
    assert read.body["contents"][0]["text"] == "Good day, Ada."
    assert (await trial_gateway.get("/api/v1/mcp/resources/read?uri=x://y")).status == 404
    assert (await trial_gateway.get("/api/v1/mcp/prompts")).body["prompts"][0]["name"] == "summary"
    prompt = await trial_gateway.post("/api/v1/mcp/prompts/summary", {"arguments": {"subject": "camels"}})
    assert prompt.body["messages"][0]["content"]["text"] == "Sum up camels."
    assert (await trial_gateway.post("/api/v1/mcp/prompts/nothing", {})).status == 404
    failed = await trial_gateway.post("/api/v1/mcp/prompts/summary", {"arguments": {}})
    assert (failed.status, failed.body["error"]["code"]) == (502, "mcp_failed")


async def test_as_tools_offers_resources_and_prompts_to_the_model(
    database_url: str, simulator: Simulator, trial: TrialServer, tmp_path: Any
) -> None:
    async with serve_asgi(trial.create_app()) as url:
        entry = f'{{"mcpServers": {{"t": {{"url": "{url}/mcp", "as_tools": ["resources", "prompts"]}}}}}}'
        (tmp_path / "mcp.json").write_text(entry)
        async with serve_gateway(database_url, simulator, None, mcp_config=tmp_path / "mcp.json") as gateway:
            names = {tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]}
            assert {"t_list_resources", "t_read_resource", "t_list_prompts", "t_get_prompt"} <= names
            read = await gateway.chat('call t_read_resource with {"uri": "trial://greeting/Ada"}')
            assert read.body["tool_calls"][0]["content"][0]["text"] == "Good day, Ada."
            listed = await gateway.chat("call t_list_resources with {}")
            assert "trial://greeting" in listed.body["tool_calls"][0]["content"][0]["text"]
            prompt = await gateway.chat('call t_get_prompt with {"name": "t_summary", "arguments": {"subject": "x"}}')
            assert "Sum up x." in prompt.body["tool_calls"][0]["content"][0]["text"]
            missing = await gateway.chat('call t_read_resource with {"uri": "nothing:"}')
            assert missing.body["tool_calls"][0]["outcome"] == "error"
