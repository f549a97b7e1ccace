"""Workers that are killed during model calls of servers."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.e2e.cluster import Cluster
from tests.e2e.test_workers import read_events
from tests.eventually import eventually
from tests.gateway.mcp_client.sampling_server import SamplingServer
from tests.stack import serve_asgi

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3", "BUDGET_TOKENS_PER_DAY": "1000000"}
TEXT = "Tell me of whales"


@pytest.fixture(params=[False, True], ids=["2025-11-25", "2026-07-28"])
def modern(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def server() -> SamplingServer:
    return SamplingServer()


@pytest.fixture
async def cluster(
    database_url: str, simulator: Simulator, server: SamplingServer, modern: bool, tmp_path: Path
) -> AsyncGenerator[Cluster]:
    timeout, file = aiohttp.ClientTimeout(total=120), tmp_path / "mcp.json"
    async with serve_asgi(server.create_app(modern=modern)) as url, aiohttp.ClientSession(timeout=timeout) as session:
        file.write_text(json.dumps({"mcpServers": {"s": {"url": f"{url}/mcp", "sampling": "on"}}}))
        yield Cluster(database_url, simulator.base_url, "", session, MCP_CONFIG=str(file))


@pytest.mark.parametrize("tool", ["recall", "summarize", "insist"])
async def test_open_model_call_of_a_killed_worker_is_lost_and_not_charged(
    cluster: Cluster, server: SamplingServer, simulator: Simulator, db: asyncpg.Connection, tool: str
) -> None:
    """Kill a worker during a model call, of `insist` the second."""
    is_second = tool == "insist"
    call = {"name": f"s_{tool}", "arguments": {} if is_second else {"prompt": TEXT}}
    simulator.faults.add_faults(
        Fault(kind="tool_calls", match="Please do it", calls=[call]),
        Fault(kind="stall", match="again" if is_second else TEXT, skip=int(is_second)),
    )
    async with cluster.run_worker(**LEASE) as first, first.stream("Please do it", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        if is_second:
            await stream.read_until("sampling.completed")
        await eventually(lambda: simulator.open_streams == 1 and len(simulator.requests) == 2 + is_second)
        first.kill()
    async with cluster.run_worker(**LEASE) as second:
        events = await read_events(second, turn_id)
        (result,) = [event.data for event in events if event.type == "tool.result"]
        samplings = [event.data for event in events if event.type == "sampling.completed"]
        steps = [event.data for event in events if event.type == "step.completed"]
        if tool == "recall":  # read-only, so it runs again, with a new model call
            assert result["outcome"] == "ok"
            assert TEXT in result["content"][0]["text"]
            assert server.answers
        else:
            assert result["outcome"] == "unknown"
            assert len(server.answers) <= is_second
        assert len(samplings) == (tool != "summarize")
        (end,) = [event.data for event in events if event.type == "turn.completed"]
        charged = sum(event["usage"]["total_tokens"] for event in steps + samplings)
        assert end["usage"]["total_tokens"] == charged
        assert await db.fetchval("SELECT (usage->>'total_tokens')::int FROM turns") == charged
        budget = await second.get("/api/v1/budget")
        assert budget.body["user"]["tokens_today"] == charged, budget.body
