"""Trace of a turn over two runs of the whole stack."""

import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Fault, Simulator
from tests.e2e.running_stack import RunningStack, run_stack
from tests.eventually import eventually
from tests.otlp_receiver import OtlpReceiver, receive_otlp

pytestmark = pytest.mark.faults
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
CALLS = [
    {"name": "calculator", "arguments": {"expression": "17 * 23"}},
    {"name": "delete_task", "arguments": {"task_id": 4711}},
]


@pytest.fixture
def receiver() -> Generator[OtlpReceiver]:
    with receive_otlp() as receiver:
        yield receiver


@asynccontextmanager
async def run_traced(directory: Path, receiver: OtlpReceiver, simulator: Simulator) -> AsyncGenerator[RunningStack]:
    settings = {
        "GROQ_API_KEY": "simulated",
        "GROQ_BASE_URL": simulator.base_url,
        "GROQ_SIMULATED": "true",
        "MODEL_FALLBACKS": "openai/gpt-oss-20b",
        "MODEL_RETRIES": "1",
        "MODEL_RETRY_DELAY": "0.01",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20secret",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        "LOG_JSON": "true",
    }
    async with run_stack(directory, **settings) as stack:
        await stack.wait_until_ready()
        yield stack


async def test_turn_with_tools_a_fallback_and_an_approval_after_a_restart_is_one_trace(
    receiver: OtlpReceiver, simulator: Simulator
) -> None:
    simulator.faults.add_faults(
        Fault(kind="status", status=503, times=2, match="gpt-oss-120b"),
        Fault(kind="tool_calls", calls=CALLS, match="gpt-oss-20b"),
    )
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        directory = Path(path)
        async with run_traced(directory, receiver, simulator) as stack:
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": "Calculate, and note the milk."}],
                "approval": "destructive",
            }
            reply = await stack.post("/api/v1/chat", body, headers=CALLER)
            assert reply.status in (200, 202), reply.body
            (question,) = reply.body["inputs"]
        async with run_traced(directory, receiver, simulator) as stack:
            answer = {"input_id": question["input_id"], "action": "accept"}
            assert (await stack.post(f"/api/v1/turns/{reply.body['turn_id']}/input", answer)).status == 200
            await eventually(lambda: len(receiver.find("invoke_agent")) == 2)
            await eventually(lambda: len(receiver.find("tools/call")) == 4)
            output = stack.output.read_text()
    check_trace(receiver)
    assert f'"trace_id": "{TRACE}"' in output
    assert {headers["authorization"] for headers in receiver.headers} == {"Basic secret"}
    assert "secret" not in receiver.read_texts() + output
    assert "note the milk" not in receiver.read_texts()


def check_trace(receiver: OtlpReceiver) -> None:
    (request,) = receiver.find("POST /api/v1/chat")
    first, second = sorted(receiver.find("invoke_agent"), key=lambda span: span.start)
    assert request.parent_id == "b7ad6b7169203331"
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
        assert tool.name in receiver.list_ancestors(client)
    requests = [span for span in receiver.find("POST /mcp") if span.trace_id == TRACE]
    assert {span.service for span in requests} == {"tools-server"}
    (wait,) = receiver.find("wait approval")
    assert wait.start < second.start < wait.end or wait.end <= second.start + 1_000_000_000
    named = ("POST /api/v1/chat", "invoke_agent", "chat ", "execute_tool", "tools/call", "wait approval", "commit")
    assert {span.trace_id for name in named for span in receiver.find(name)} == {TRACE}
