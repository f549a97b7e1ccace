"""Workers that are killed while hosts of `/mcp` wait for their tasks."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.e2e.cluster import Cluster
from tests.eventually import eventually
from tests.gateway.api.task_host import TaskHost, open_host
from tests.gateway.api.test_host_tasks import SlowServer, get_text
from tests.stack import serve_asgi

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
ERAS = pytest.mark.parametrize("modern", [False, True], ids=["2025-11-25", "2026-07-28"])


@pytest.fixture(params=[True, False], ids=["repeatable", "once"])
def server(request: pytest.FixtureRequest) -> SlowServer:
    return SlowServer(annotations={"idempotentHint": request.param})


@pytest.fixture
async def cluster(
    database_url: str, simulator: Simulator, server: SlowServer, tmp_path: Path
) -> AsyncGenerator[Cluster]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with serve_asgi(server) as url, aiohttp.ClientSession(timeout=timeout) as session:
        file = tmp_path / "mcp.json"
        entry = {"url": f"{url}/mcp", "prefix": "raw", "tasks": ["slow"]}
        file.write_text(json.dumps({"mcpServers": {"raw": entry}}))
        cluster = Cluster(database_url, simulator.base_url, f"{url}/mcp", session)
        cluster.change_settings(MCP_CONFIG=str(file), HEARTBEAT_SECONDS="0.5", HEARTBEAT_TIMEOUT_SECONDS="3")
        yield cluster
        server.may_answer.set()


async def wait_for_tool(host: TaskHost) -> None:
    async def is_listed() -> bool:
        return "raw_slow" in str(await host.send("tools/list"))

    await eventually(is_listed)


@ERAS
async def test_task_of_a_call_goes_on_at_another_worker(cluster: Cluster, server: SlowServer, modern: bool) -> None:
    """A call that is not repeatable has an unknown outcome."""
    async with cluster.run_worker() as first, open_host(first, modern=modern) as host:
        await wait_for_tool(host)
        task_id = await host.start("raw_slow", {"size": 3})
        await eventually(lambda: server.count("tools/call") == 1)
        first.kill()
    async with cluster.run_worker() as second, open_host(second, modern=modern) as host:
        if server.tools[0]["annotations"]["idempotentHint"]:
            await eventually(lambda: server.count("tools/call") == 2)
            assert (await host.get(task_id))["status"] == "working"
            assert [params["arguments"] for method, params in server.calls if method == "tools/call"] == 2 * [
                {"size": 3}
            ]
            server.may_answer.set()
            assert get_text(await host.fetch(task_id)) == "done"
            second.kill()
        else:
            result = await host.fetch(task_id)
            assert result["isError"] is True
            assert "may or may not" in get_text(result)
            assert server.count("tools/call") == 1
            return
    async with cluster.run_worker() as third, open_host(third, modern=modern) as host:
        assert get_text(await host.fetch(task_id)) == "done"


@ERAS
async def test_task_of_the_agent_goes_on_at_another_worker(
    cluster: Cluster, simulator: Simulator, db: asyncpg.Connection, modern: bool
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="17 * 23"))
    async with cluster.run_worker() as first, open_host(first, modern=modern) as host:
        task_id = await host.start("ask_agent", {"prompt": "What is 17 * 23?"})
        await eventually(lambda: len(simulator.requests) == 1)
        first.kill()
    async with cluster.run_worker() as second, open_host(second, modern=modern) as host:
        result = await host.fetch(task_id)
        assert result["structuredContent"]["turn_id"] == task_id
        assert (await host.get(task_id))["status"] == "completed"
    assert await db.fetchval("SELECT count(*) FROM turns") == 1
