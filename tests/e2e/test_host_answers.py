"""Hosts of two official SDKs whose models and roots servers use."""

import json
from pathlib import Path
from typing import Any

import pytest
from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    CreateMessageResultWithTools,
    SamplingCapability,
    SamplingToolsCapability,
    TextContent,
    ToolUseContent,
)

from gateway.simulator import Simulator
from tests.e2e.node import require_node, run_script
from tests.gateway.api.test_roots import RootsHost, host_eras, show
from tests.gateway.api.test_sampling import eras, serve_sampling
from tests.gateway.test_mcp_endpoint import connect_host, get_text

ROOT = "file:///home/ada/work"
ANSWERS = {
    "summarize": "summary: from the host",
    "look_up": 'toolUse lookup {"word": "whale"}',
    "show_roots": ROOT,
}


def make_entry(modern: bool) -> dict[str, Any]:
    """Return a server's entry.

    The tools of the modern server ask in results alone.
    """
    return {
        "sampling": "on",
        "roots": ["file:///srv/entry"],
        "protocol": "2026-07-28" if modern else "legacy",
    }


@require_node("@modelcontextprotocol/client")
@pytest.mark.node
@eras
@pytest.mark.parametrize(("sdk", "era"), [("client", "auto"), ("client", "legacy"), ("sdk", "legacy")])
async def test_servers_use_model_and_roots_of_a_host_in_node(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, sdk: str, era: str
) -> None:
    entry = make_entry(modern)
    async with serve_sampling(database_url, simulator, tmp_path, modern, entry) as sampled:
        result = await run_script("mcp_answers.mjs", sdk, f"{sampled.gateway.base_url}/mcp", era, "s_", ROOT)
        assert result["texts"] == ANSWERS
        assert [request["tools"] for request in result["seen"]] == [[], ["lookup"]]
        assert not simulator.requests


@eras
@host_eras
async def test_servers_use_model_and_roots_of_a_host_in_python(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, mode: str
) -> None:
    async def sample(_context: Any, params: CreateMessageRequestParams) -> Any:
        if params.tools:
            use = ToolUseContent(type="tool_use", id="call_1", name=params.tools[0].name, input={"word": "whale"})
            return CreateMessageResultWithTools(
                role="assistant", content=[use], model="host-model", stop_reason="toolUse"
            )
        return CreateMessageResult(role="assistant", content=TextContent(text="from the host"), model="host-model")

    host, tools = RootsHost(ROOT), SamplingCapability(tools=SamplingToolsCapability())
    options: Any = {"sampling_callback": sample, "sampling_capabilities": tools}
    entry = make_entry(modern)
    async with (
        serve_sampling(database_url, simulator, tmp_path, modern, entry) as sampled,
        connect_host(sampled.gateway, mode, list_roots_callback=host.list_roots, **options) as client,
    ):
        texts = {
            "summarize": get_text(await client.call_tool("s_summarize", {"prompt": "x"})),
            "look_up": get_text(await client.call_tool("s_look_up", {"prompt": "x"})),
            "show_roots": await show(client),
        }
        assert texts == ANSWERS, json.dumps(texts)
        assert not simulator.requests
