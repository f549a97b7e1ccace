"""Sampling with tools by servers of the SDKs in Node."""

import asyncio
import json
from pathlib import Path

import pytest

from gateway.simulator import Fault, Simulator
from tests.e2e.node import NODE, require_node
from tests.eventually import eventually
from tests.gateway.api.test_questions import get_only_event
from tests.stack import find_free_port, serve_gateway

pytestmark = [require_node("@modelcontextprotocol/server"), pytest.mark.node]


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_model_of_a_turn_calls_a_tool_of_the_server(
    database_url: str, simulator: Simulator, tmp_path: Path, era: str
) -> None:
    port, file = find_free_port(), tmp_path / "mcp.json"
    process = await asyncio.create_subprocess_exec("node", str(NODE / "sampling_server.mjs"), str(port), era, cwd=NODE)
    entry = {"url": f"http://127.0.0.1:{port}/mcp", "sampling": "on"}
    file.write_text(json.dumps({"mcpServers": {"n": entry}}))
    simulator.faults.add_faults(
        Fault(
            kind="tool_calls", match="Please do it", calls=[{"name": "n_look_up", "arguments": {"prompt": "whales"}}]
        ),
        Fault(kind="tool_calls", match="whales", calls=[{"name": "lookup", "arguments": {"word": "whale"}}]),
    )
    try:
        async with serve_gateway(database_url, simulator, None, mcp_config=file, gateway_data_dir=tmp_path) as gateway:
            await eventually(lambda: gateway.state.toolbox.list_server_statuses()[0].state == "up")
            status = gateway.state.toolbox.list_server_statuses()[0]
            assert (status.protocol_version == "2026-07-28") == (era == "modern")
            reply = await gateway.chat_stream("Please do it")
        result = get_only_event(reply.events, "tool.result")
        assert result["content"][0]["text"] == 'toolUse lookup {"word":"whale"}', result
        assert get_only_event(reply.events, "sampling.completed")["server"] == "n"
    finally:
        process.kill()
        await process.wait()
