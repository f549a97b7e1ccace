"""Requests to a worker that is out of memory."""

from collections.abc import AsyncGenerator

import pytest
from mcp import Client, MCPError

from gateway.domain.errors import Overloaded
from gateway.domain.messages import Message, Principal, TurnRequest
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

LIMIT = 64 * 1024 * 1024
"""Bytes, far below what a gateway needs."""


@pytest.fixture
async def overloaded_gateway(database_url: str, slow_simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, slow_simulator, tools_url, shed_memory_bytes=LIMIT) as gateway:
        await eventually(lambda: gateway.state.load.overload_reason)
        yield gateway


@pytest.mark.parametrize(
    "path", ["/api/v1/chat", "/api/v1/chat/stream", "/v1/chat/completions", "/v1/responses", "/api/v1/tools/calculator"]
)
async def test_new_work_is_refused_with_a_time_to_retry(overloaded_gateway: Gateway, path: str) -> None:
    reply = await overloaded_gateway.post(path, {"message": "Hello", "model": "openai/gpt-oss-120b"})
    code = "server_is_overloaded" if path.startswith("/v1/") else "overloaded"
    assert (reply.status, reply.body["error"]["code"]) == (503, code)
    assert int(reply.headers["retry-after"]) >= 1


async def test_mcp_host_is_refused_a_tool_call_and_may_list_tools(overloaded_gateway: Gateway) -> None:
    async with Client(f"{overloaded_gateway.base_url}/mcp") as client:
        assert (await client.list_tools()).tools
        with pytest.raises(MCPError, match="memory"):
            await client.call_tool("calculator", {"expression": "1+1"})
        with pytest.raises(MCPError, match="memory"):
            await client.call_tool("ask_agent", {"prompt": "Hello"})


async def test_service_refuses_a_turn_that_an_api_did_not_refuse(overloaded_gateway: Gateway) -> None:
    request, principal = TurnRequest((Message("user", "Hello"),)), Principal("ada")
    with pytest.raises(Overloaded):
        await overloaded_gateway.state.turn_service.start_turn(request, principal)


async def test_running_turn_can_be_followed_and_cancelled_while_new_work_is_refused(
    overloaded_gateway: Gateway,
) -> None:
    gateway, load = overloaded_gateway, overloaded_gateway.state.load
    await load.task.stop()
    load.record_sample(0.0, 0)
    gateway.simulator.pause_streams()
    async with gateway.stream("count to 200", on_disconnect="continue") as stream:
        turn_id = (await stream.read_until("turn.started")).data["turn_id"]
        for _ in range(3):
            load.record_sample(0.0, LIMIT + 1)
        assert (await gateway.chat("Hello")).status == 503
        assert (await gateway.get("/health")).status == 200
        assert (await gateway.get(f"/api/v1/turns/{turn_id}")).body["status"] == "running"
        assert (await gateway.get("/api/v1/conversations")).status == 200
        assert (await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)).status < 300
        await stream.read_until("turn.cancelled")
