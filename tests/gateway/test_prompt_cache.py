"""Tests of the prompt prefix, which must be byte-identical to be cached."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.mcp_client.server_config import ServerConfig
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway


def get_prompt_prefixes(simulator: Simulator) -> list[str]:
    """Return the tools and system prompt of each request as JSON."""
    return [json.dumps([body["tools"], body["messages"][0]]) for body in simulator.requests]


async def test_prompt_prefix_is_stable_across_turns_and_restarts(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> None:
    """Three MCP servers connect in another order after the restart."""
    ports = [find_free_port(), find_free_port()]
    servers: dict[str, Any] = {f"trial{n}": {"url": f"http://127.0.0.1:{port}/mcp"} for n, port in enumerate(ports)}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {**servers, "tools": {"url": tools_url, "identity": "gateway"}}}))
    for first, second in (ports, ports[::-1]):
        async with (
            serve_gateway(database_url, simulator, None, mcp_config=file) as gateway,
            serve_asgi(TrialServer().create_app(), first),
        ):
            await wait_until_up(gateway, 2)
            async with serve_asgi(TrialServer().create_app(), second):
                await wait_until_up(gateway, 3)
                await gateway.chat("What is 23*19?")
                conversation = (await gateway.chat("Add a task to rest", conversation_id="new")).body
                await gateway.chat("Thank you", conversation_id=conversation["conversation_id"])
    assert len(simulator.requests) == 10
    assert len(set(get_prompt_prefixes(simulator))) == 1
    tools = [tool["function"]["name"] for tool in simulator.requests[-1]["tools"]]
    assert tools[0].startswith("trial0")
    assert tools.index("trial1_echo") < tools.index("tools_calculator")


async def wait_until_up(gateway: Gateway, number: int) -> None:
    await eventually(
        lambda: sum(server.state == "up" for server in gateway.state.toolbox.list_server_statuses()) >= number
    )


async def test_tool_order_does_not_depend_on_the_server() -> None:
    listed_orders: set[tuple[str, ...]] = set()
    offered_orders: set[tuple[str, ...]] = set()
    for seed in range(3):
        trial = TrialServer()
        tools = trial.mcp._tool_manager._tools
        shuffled = random.Random(seed).sample(sorted(tools), len(tools))
        trial.mcp._tool_manager._tools = {name: tools[name] for name in shuffled}
        async with (
            serve_asgi(trial.create_app()) as address,
            connect_toolbox(ServerConfig(name="own", url=f"{address}/mcp")) as toolbox,
        ):
            listed_orders.add(tuple(shuffled))
            offered_orders.add(tuple(spec.name for spec in toolbox.list_specs()))
    assert (len(listed_orders), len(offered_orders)) == (3, 1)


async def test_cached_share_of_the_prompt_is_reported(gateway: Gateway) -> None:
    first = (await gateway.chat("What is 23*19?")).body["usage"]
    second = (await gateway.chat("What is 23*20?")).body["usage"]
    assert 0 < first["cached_tokens"] < second["cached_tokens"] < second["prompt_tokens"]
    total = (await gateway.get("/api/v1/usage")).body["total"]
    share = (first["cached_tokens"] + second["cached_tokens"]) / (first["prompt_tokens"] + second["prompt_tokens"])
    assert total["cached_share"] == pytest.approx(share, abs=1e-4)
    assert second["cached_tokens"] / second["prompt_tokens"] > 0.9
