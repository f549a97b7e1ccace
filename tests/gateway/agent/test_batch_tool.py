"""Tests of the tool that runs several read-only calls in one call."""

from collections.abc import AsyncGenerator

import pytest

from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from tests.stack import Gateway, serve_gateway

QWEN = "qwen/qwen3.8-27b"


@pytest.fixture
async def batch_gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, agent_batch_tool=True) as gateway:
        yield gateway


def make_batch_fault(*calls: tuple[str, dict[str, object]], times: int = 1) -> Fault:
    requests = [{"tool": tool, "arguments": arguments} for tool, arguments in calls]
    return Fault(kind="tool_calls", calls=[{"name": "batch", "arguments": {"calls": requests}}], times=times)


async def test_batch_runs_its_calls_and_returns_results_in_order(batch_gateway: Gateway) -> None:
    batch_gateway.simulator.faults.add_faults(
        make_batch_fault(
            ("calculator", {"expression": "2*21"}), ("list_tasks", {}), ("calculator", {"expression": "1/0"})
        )
    )
    reply = await batch_gateway.chat_stream("Do it all")
    assert "batch" in reply.get_event_data("turn.started")[0]["tools"]
    (result,) = reply.get_event_data("tool.result")
    assert result["outcome"] == "ok"
    assert [entry["outcome"] for entry in result["structured"]["results"]] == ["ok", "ok", "error"]
    assert "42" in result["content"][1]["text"]
    assert reply.get_event_data("turn.completed")


async def test_batch_refuses_tools_that_are_not_read_only(batch_gateway: Gateway) -> None:
    batch_gateway.simulator.faults.add_faults(make_batch_fault(("add_task", {"title": "smuggled"}), times=3))
    reply = await batch_gateway.chat_stream("Do it all")
    assert reply.get_event_data("tool.result")[0]["outcome"] == "error"
    listed = await batch_gateway.post("/api/v1/tools/list_tasks", {})
    assert "smuggled" not in str(listed.body)


async def test_model_with_parallel_calls_gets_no_batch_tool(batch_gateway: Gateway) -> None:
    reply = await batch_gateway.chat_stream("Hello", model=QWEN)
    assert "batch" not in reply.get_event_data("turn.started")[0]["tools"]


async def test_batch_tool_is_off_by_default(gateway: Gateway) -> None:
    reply = await gateway.chat_stream("Hello")
    assert "batch" not in reply.get_event_data("turn.started")[0]["tools"]
