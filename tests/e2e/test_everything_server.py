"""The reference server `server-everything` in Node, connected to the gateway."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
import pytest
from mcp.shared.subscriptions import ResourceUpdated

from gateway.simulator import Fault, Simulator
from tests.e2e.node import NODE, require_node
from tests.eventually import eventually
from tests.gateway.api.test_resource_subscriptions import connect_legacy
from tests.gateway.api.test_roots import RootsHost
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import find_free_port, serve_gateway

pytestmark = [require_node("@modelcontextprotocol/server-everything"), pytest.mark.node]
PROGRAM = NODE / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
RESOURCE = "demo://resource/static/document/features.md"


@pytest.fixture
async def everything() -> AsyncGenerator[str]:
    """The server's address."""
    port = find_free_port()
    process = await asyncio.create_subprocess_exec(
        "node",
        str(PROGRAM),
        "streamableHttp",
        env=os.environ | {"PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        async with httpx2.AsyncClient() as http:

            async def is_serving() -> bool:
                try:
                    return (await http.get(url)).status_code == 400
                except httpx2.TransportError:
                    return False

            await eventually(is_serving)
        yield url
    finally:
        process.kill()
        await process.wait()


async def test_updates_of_a_resource_reach_hosts_of_both_eras(
    database_url: str, simulator: Simulator, everything: str
) -> None:
    async with (
        serve_gateway(database_url, simulator, everything) as gateway,
        connect_legacy(gateway) as (legacy, updated),
        connect_host(gateway, "auto") as current,
        asyncio.timeout(50),
    ):
        await legacy.session.subscribe_resource(RESOURCE)
        async with current.listen(resource_subscriptions=[RESOURCE]) as changes:
            assert changes.honored.resource_subscriptions == [RESOURCE]
            started = await current.call_tool("toggle-subscriber-updates", {})
            assert "Started" in str(started.content)
            assert await anext(aiter(changes)) == ResourceUpdated(RESOURCE)
        assert await updated.get() == RESOURCE


async def test_server_knows_the_roots_of_each_host(
    database_url: str, simulator: Simulator, everything: str, tmp_path: Path
) -> None:
    """Let the server ask at the begin of a session, and remember."""
    file, entry = tmp_path / "mcp.json", {"url": everything, "roots": ["file:///srv/project"]}
    file.write_text(json.dumps({"mcpServers": {"e": entry}}))
    async with serve_gateway(database_url, simulator, None, mcp_config=file, gateway_data_dir=tmp_path) as gateway:
        await eventually(lambda: gateway.state.toolbox.list_server_statuses()[0].state == "up")
        for mode in ("legacy", "auto"):
            for name in ("ada", "bob"):
                host = RootsHost(f"file:///home/{name}")
                async with connect_host(gateway, mode, list_roots_callback=host.list_roots) as client:
                    shown = str((await client.call_tool("e_get-roots-list", {})).content)
                assert host.roots[0] in shown
                assert "file:///srv/project" not in shown


async def test_server_uses_the_model_of_a_turn_and_knows_its_roots(
    database_url: str, simulator: Simulator, everything: str, tmp_path: Path
) -> None:
    file, entry = tmp_path / "mcp.json", {"url": everything, "sampling": "on", "roots": ["file:///srv/project"]}
    file.write_text(json.dumps({"mcpServers": {"e": entry}}))
    calls = [
        {"name": "e_trigger-sampling-request", "arguments": {"prompt": "tell me of whales"}},
        {"name": "e_get-roots-list", "arguments": {}},
    ]
    simulator.faults.add_faults(Fault(kind="tool_calls", match="Please do it", calls=calls))
    async with serve_gateway(database_url, simulator, None, mcp_config=file, gateway_data_dir=tmp_path) as gateway:
        await eventually(lambda: gateway.state.toolbox.list_server_statuses()[0].state == "up")
        reply = await gateway.chat_stream("Please do it")
    sampled, roots = [event["content"][0]["text"] for event in reply.get_event_data("tool.result")]
    assert "tell me of whales" in sampled
    assert '"stopReason": "endTurn"' in sampled
    assert "file:///srv/project" in roots
    assert [event["server"] for event in reply.get_event_data("sampling.completed")] == ["e"]
