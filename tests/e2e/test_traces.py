"""Trace of a turn over two runs of the whole stack."""

from collections.abc import Generator

import pytest

from gateway.simulator import Simulator
from tests.e2e.traced_turn import CALLER_SPAN, TRACE, run_interrupted_turn
from tests.otlp_receiver import OtlpReceiver, receive_otlp

pytestmark = pytest.mark.faults


@pytest.fixture
def receiver() -> Generator[OtlpReceiver]:
    with receive_otlp() as receiver:
        yield receiver


async def test_turn_with_tools_a_fallback_and_an_approval_after_a_restart_is_one_trace(
    receiver: OtlpReceiver, simulator: Simulator
) -> None:
    def has_arrived() -> bool:
        return len(receiver.find("invoke_agent")) == 2 and len(receiver.find("tools/call")) == 4

    output = await run_interrupted_turn(receiver.endpoint, simulator, has_arrived)
    check_trace(receiver)
    assert f'"trace_id": "{TRACE}"' in output
    assert {headers["authorization"] for headers in receiver.headers} == {"Basic secret"}
    assert "secret" not in receiver.read_texts() + output
    assert "note the milk" not in receiver.read_texts()


def check_trace(receiver: OtlpReceiver) -> None:
    (request,) = receiver.find("POST /api/v1/chat")
    first, second = sorted(receiver.find("invoke_agent"), key=lambda span: span.start)
    assert request.parent_id == CALLER_SPAN
    assert [span.attributes["gateway.outcome"] for span in (first, second)] == ["waiting", "completed"]
    assert first.parent_id == second.parent_id == request.span_id
    assert second.links == [(TRACE, request.span_id)]
    (fallback,) = [span for span in receiver.find("chat ") if span.events]
    assert [name for name, _ in fallback.events] == ["gateway.retry", "gateway.fallback"]
    tools = {span.attributes["gen_ai.tool.name"]: span for span in receiver.find("execute_tool")}
    assert set(tools) == {"calculator", "delete_task"}
    for name, tool in tools.items():
        (client,) = [span for span in receiver.find(f"tools/call {name}") if span.kind == 3]
        (server,) = [span for span in receiver.find(f"tools/call {name}") if span.kind == 2]
        assert (client.service, server.service) == ("agent-gateway", "tools-server")
        assert server.parent_id == client.span_id
        assert receiver.list_ancestors(client) == [tool.name, first.name, request.name]
    requests = [span for span in receiver.find("POST /mcp") if span.trace_id == TRACE]
    assert {span.service for span in requests} == {"tools-server"}
    (wait,) = receiver.find("wait approval")
    assert wait.start < second.start < wait.end or wait.end <= second.start + 1_000_000_000
    named = ("POST /api/v1/chat", "invoke_agent", "chat ", "execute_tool", "tools/call", "wait approval", "commit")
    assert {span.trace_id for name in named for span in receiver.find(name)} == {TRACE}
