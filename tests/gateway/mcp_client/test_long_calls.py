"""Tests of calls that take longer than the limits of other requests."""

import asyncio
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import Context

from gateway.mcp_client import transports
from gateway.mcp_client.server_config import ServerConfig
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.odd_http_server import OddHttpServer, stay_silent
from tests.gateway.mcp_client.test_toolbox import ERAS, call_tool, connect_toolbox, get_text
from tests.stack import serve_asgi


@pytest.mark.parametrize("kind", ["modern", "legacy", "sse"])
async def test_silent_call_outlives_the_read_limit_of_other_requests(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The read limit of 300 seconds is one second here."""
    monkeypatch.setattr(transports, "_HTTP_TIMEOUT", httpx2.Timeout(5, read=1.0))
    trial = TrialServer()
    is_sse = kind == "sse"
    app: Any = trial.mcp.sse_app() if is_sse else trial.create_app(modern=kind == "modern")
    async with serve_asgi(app) as address:
        config = ServerConfig(name="t", url=f"{address}/{'sse' if is_sse else 'mcp'}", prefix="", timeout=450)
        async with connect_toolbox(config) as toolbox:
            await eventually(lambda: toolbox.find_tool("slow"))  # a stalled machine may exceed the limit at first
            call = asyncio.create_task(call_tool(toolbox, "slow"))
            async with asyncio.timeout(30):
                await trial.started.wait()
            await asyncio.sleep(1.5)
            trial.release.set()
            assert get_text(await call) == "done"
            assert toolbox.list_server_statuses()[0].transport == ("sse" if is_sse else "http")


@pytest.mark.parametrize("modern", ERAS.values(), ids=list(ERAS))
async def test_exchange_of_a_call_that_was_given_up_ends(modern: bool) -> None:
    odd = OddHttpServer(modern=modern, call=stay_silent)
    async with serve_asgi(odd) as address:
        config = ServerConfig(name="t", url=f"{address}/mcp", prefix="")
        async with connect_toolbox(config, tool_timeout=0.3) as toolbox:

            async def has_arrived() -> bool:
                result = await call_tool(toolbox, "slow")
                assert (result.outcome, "within 0.3 seconds" in get_text(result)) == ("unknown", True)
                return "tools/call" in odd.receives  # on a stalled machine the time is over before the call is sent

            await eventually(has_arrived)
            async with asyncio.timeout(30):
                message = await odd.receives["tools/call"]()
            assert message["type"] == "http.disconnect"
            assert get_text(await call_tool(toolbox, "slow")) != "done"


@pytest.mark.faults
@pytest.mark.parametrize("modern", ERAS.values(), ids=list(ERAS))
async def test_progress_extends_the_time_limit_up_to_a_bound(modern: bool) -> None:
    trial = TrialServer()

    async def work(steps: int, ctx: Context[Any]) -> str:
        """Report progress."""
        for step in range(steps):
            await asyncio.sleep(0.25)
            await ctx.report_progress(step, steps)
        return "worked"

    trial.mcp.add_tool(work, structured_output=False)
    async with serve_asgi(trial.create_app(modern=modern)) as address:
        config = ServerConfig(name="t", url=f"{address}/mcp", prefix="")
        async with connect_toolbox(config, tool_timeout=2, tool_progress_timeout=6) as toolbox:
            assert get_text(await call_tool(toolbox, "work", steps=12)) == "worked"
            result = await call_tool(toolbox, "work", steps=1_000)
            assert result.outcome == "unknown"
