"""A turn that a restart interrupts, with spans in a back end."""

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.simulator import Fault, Simulator
from tests.e2e.running_stack import RunningStack, run_stack
from tests.eventually import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN = "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{CALLER_SPAN}-01"}
PROMPT = "Calculate, and note the milk."
CALLS = [
    {"name": "calculator", "arguments": {"expression": "17 * 23"}},
    {"name": "delete_task", "arguments": {"task_id": 4711}},
]


@asynccontextmanager
async def run_traced(directory: Path, endpoint: str, simulator: Simulator) -> AsyncGenerator[RunningStack]:
    settings: dict[str, Any] = {
        "GROQ_API_KEY": "simulated",
        "GROQ_BASE_URL": simulator.base_url,
        "GROQ_SIMULATED": "true",
        "MODEL_FALLBACKS": "openai/gpt-oss-20b",
        "MODEL_RETRIES": "1",
        "MODEL_RETRY_DELAY": "0.01",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20secret",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        "LOG_JSON": "true",
    }
    async with run_stack(directory, **settings) as stack:
        yield stack


async def run_interrupted_turn(
    endpoint: str, simulator: Simulator, has_arrived: Callable[[], bool | Awaitable[bool]]
) -> str:
    """Run a turn over two stacks, with its approval in between.

    It has two tools and a fallback. Wait until the back end has the spans; return what the second stack has printed.
    """
    simulator.faults.add_faults(
        Fault(kind="status", status=503, times=2, match="gpt-oss-120b"),
        Fault(kind="tool_calls", calls=CALLS, match="gpt-oss-20b"),
    )
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        directory = Path(path)
        async with run_traced(directory, endpoint, simulator) as stack:
            messages = [{"role": "user", "content": PROMPT}]
            body: dict[str, Any] = {"messages": messages, "approval": "destructive"}
            reply = await stack.post("/api/v1/chat", body, headers=CALLER)
            assert reply.status in (200, 202), reply.body
            (question,) = reply.body["inputs"]
        async with run_traced(directory, endpoint, simulator) as stack:
            answer = {"input_id": question["input_id"], "action": "accept"}
            assert (await stack.post(f"/api/v1/turns/{reply.body['turn_id']}/input", answer)).status == 200
            await eventually(has_arrived)
            return stack.output.read_text()
