"""Workers that are killed while servers run calls as tasks."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.e2e.cluster import Cluster
from tests.e2e.test_workers import read_events
from tests.eventually import eventually
from tests.gateway.mcp_client.task_server import TaskServer
from tests.stack import serve_asgi

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "3"}


@pytest.fixture(params=[False, True], ids=["2025-11-25", "2026-07-28"])
def server(request: pytest.FixtureRequest) -> TaskServer:
    return TaskServer(modern=request.param)


@pytest.fixture
async def cluster(database_url: str, simulator: Simulator, server: TaskServer) -> AsyncGenerator[Cluster]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with serve_asgi(server) as url, aiohttp.ClientSession(timeout=timeout) as session:
        yield Cluster(database_url, simulator.base_url, f"{url}/mcp", session)


async def test_successors_of_killed_workers_poll_the_same_task(
    cluster: Cluster, server: TaskServer, db: asyncpg.Connection
) -> None:
    """Kill one worker while the turn waits, the next while it fetches."""
    is_fetching, may_answer = asyncio.Event(), asyncio.Event()
    fetch_method = "tasks/get" if server.modern else "tasks/result"
    fetch: Any = server.answers[fetch_method]

    async def hold_result(params: dict[str, Any], request: Any) -> Any:
        if server.tasks[0]["status"] == "completed" and await db.fetchval(
            "SELECT count(*) FROM turns WHERE worker_id IS NOT NULL"
        ):
            is_fetching.set()
            await may_answer.wait()
        return fetch(params, request)

    async with cluster.run_worker(**LEASE) as first, first.stream("call build {}", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        await stream.read_until("tool.progress")
        await eventually(lambda: db.fetchval("SELECT waits_for_task FROM turns"))
        first.kill()
    server.answers[fetch_method] = hold_result
    async with cluster.run_worker(**LEASE) as second:
        server.finish("built once")
        await asyncio.wait_for(is_fetching.wait(), 60)
        second.kill()
    may_answer.set()
    async with cluster.run_worker(**LEASE) as third:
        events = await read_events(third, turn_id)
    results = [event.data for event in events if event.type == "tool.result"]
    assert [(result["outcome"], result["content"][0]["text"]) for result in results] == [("ok", "built once")]
    assert events[-2].type == "turn.completed", events[-2]
    assert server.count("tools/call") == 1
