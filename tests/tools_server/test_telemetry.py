"""Traces, metrics and contents of the tool server's process."""

import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.eventually import eventually
from tests.otlp_receiver import OtlpReceiver, receive_otlp
from tests.stack import SECRET, find_free_port
from tests.tools_server.conftest import NO_DATABASE, connect, run_tools_server, text_of
from tests.tools_server.test_process import stdio

pytestmark = pytest.mark.faults
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
EXPORT_TIMEOUT_SECONDS = 60.0
CALLS = "mcp_server_operation_duration_seconds_count"


@pytest.fixture
def receiver() -> Generator[OtlpReceiver]:
    with receive_otlp() as receiver:
        yield receiver


def telemetry(receiver: OtlpReceiver, **values: str) -> dict[str, str]:
    return {
        "DATABASE_URL": NO_DATABASE,
        "TOOLS_SERVER_SECRET": SECRET,
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(EXPORT_TIMEOUT_SECONDS),
        **values,
    }


async def read_samples(port: int, path: str = "/metrics") -> list[Sample]:
    async with httpx2.AsyncClient() as http:
        response = await http.get(f"http://127.0.0.1:{port}{path}")
    assert response.status_code == 200, response.text
    return [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]


def sum_values(samples: list[Sample], name: str, **labels: str) -> float:
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def test_calls_are_counted_on_a_port_and_over_otlp(receiver: OtlpReceiver) -> None:
    port = find_free_port()
    values = {"METRICS": "on", "TOOLS_METRICS_PORT": str(port)}
    async with run_tools_server(**telemetry(receiver, **values)) as server:
        await server.ready()
        async with connect(server.address, "auto") as client:
            for expression in ("5*9", "1/0"):
                await client.call_tool("calculator", {"expression": expression})
            for number in range(300):  # names that only a client knows are one series
                assert (await client.call_tool(f"hostile-{number}", {})).is_error
        samples = await read_samples(port)
        calculator = {"mcp_method_name": "tools/call", "gen_ai_tool_name": "calculator"}
        assert sum_values(samples, CALLS, error_type="", **calculator) == 1
        assert sum_values(samples, CALLS, error_type="tool_error", **calculator) == 1
        assert sum_values(samples, CALLS, gen_ai_tool_name="_OTHER") == 300
        assert not [sample for sample in samples if "hostile" in str(sample.labels)]
        assert sum_values(samples, "http_server_request_duration_seconds_count", http_route="/mcp") >= 302
        assert sum_values(samples, "tools_server_build_info") == 1

        def find_points() -> list[Any]:
            found = [m for m in receiver.metrics if m.name == "mcp.server.operation.duration"]
            return list(found[-1].histogram.data_points) if found else []

        await eventually(lambda: sum(point.count for point in find_points()) >= 302)
        attributes = [{item.key for item in point.attributes} for point in find_points()]
        assert {"mcp.method.name", "gen_ai.tool.name", "error.type", "mcp.protocol.version"} in attributes
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{server.address}/metrics")).status_code in (401, 404)
            response = await http.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": "evil.example"})
            assert response.status_code == 421


SUM = "471108154711+1"
"""Begins with a number that is no part of a timestamp."""


async def test_spans_have_redacted_contents_only_when_asked(receiver: OtlpReceiver, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "number"\npattern = "471108154711"\n')
    values = {"REDACTION_RULES": str(rules)}
    for captured in ("", "true"):
        receiver.spans.clear()
        async with run_tools_server(**telemetry(receiver, **values, **{CONTENT: captured})) as server:
            await server.ready()
            async with connect(server.address, "auto") as client:
                assert text_of(await client.call_tool("calculator", {"expression": SUM})) == f"{SUM} = 471108154712"
            await eventually(lambda: receiver.find("tools/call calculator"))
        (span,) = [span for span in receiver.find("tools/call calculator") if span.kind == 2]
        assert "471108154711" not in receiver.read_texts()
        assert span.attributes["network.transport"] == "tcp"
        assert span.attributes["mcp.protocol.version"]
        contents = {name for name in span.attributes if name.startswith("gen_ai.tool.call.")}
        if not captured:
            assert contents == set()
            continue
        assert json.loads(span.attributes["gen_ai.tool.call.arguments"]) == {"expression": "[number]+1"}
        assert json.loads(span.attributes["gen_ai.tool.call.result"])[0]["text"] == "[number]+1 = 471108154712"


async def test_host_over_stdio_is_traced_by_its_transport(receiver: OtlpReceiver) -> None:
    parameters: StdioServerParameters = stdio(**telemetry(receiver))
    async with Client(parameters, read_timeout_seconds=30) as client:
        await client.call_tool("calculator", {"expression": "5*9"})
        await eventually(lambda: receiver.find("tools/call calculator"))
    (span,) = [span for span in receiver.find("tools/call calculator") if span.service == "tools-server"]
    assert span.attributes["network.transport"] == "pipe"


async def test_long_names_of_hosts_are_cut_before_they_wait(receiver: OtlpReceiver) -> None:
    async with run_tools_server(**telemetry(receiver)) as server:
        await server.ready()
        async with connect(server.address, "auto") as client:
            assert (await client.call_tool("x" * 100_000, {})).is_error
        await eventually(lambda: receiver.find("tools/call xxx"))
    for span in receiver.find("tools/call xxx"):
        assert len(span.name) <= 200
        assert all(len(value) <= 200 for value in span.attributes.values() if isinstance(value, str))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({CONTENT: "true", "REDACTION_RULES": "/nothing/here.toml"}, "REDACTION_RULES: cannot read"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not supported"),
        ({"OTEL_PROPAGATORS": "tracecontext,b4"}, "OTEL_PROPAGATORS: 'b4' is not installed"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE: must be a whole number above 0"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "Bearer hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS: must be name=value"),
    ],
)
async def test_wrong_variables_are_clear_errors_at_the_start(
    receiver: OtlpReceiver, values: dict[str, str], message: str
) -> None:
    async with run_tools_server(**telemetry(receiver, **values)) as server:
        ended = await server.end(by=None)
    assert (ended.code, message in ended.stderr) == (2, True), ended.stderr
    assert "hunter2" not in ended.stderr


async def test_collector_that_hangs_holds_up_no_exit(receiver: OtlpReceiver) -> None:
    receiver.may_answer.clear()
    async with run_tools_server(**telemetry(receiver)) as server:
        await server.ready()
        async with connect(server.address, "auto") as client:
            assert text_of(await client.call_tool("calculator", {"expression": "5*9"})) == "5*9 = 45"
        await eventually(lambda: len(receiver.headers) >= 2)  # metrics and traces wait for an answer
        started_at = time.monotonic()
        assert (await server.end()).code == 0
        assert time.monotonic() - started_at < EXPORT_TIMEOUT_SECONDS


async def test_taken_port_of_metrics_is_a_clear_error_at_the_start(receiver: OtlpReceiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with run_tools_server(**telemetry(receiver, METRICS="on", TOOLS_METRICS_PORT=port)) as server:
            ended = await server.end(by=None)
    assert (ended.code, "TOOLS_METRICS_PORT" in ended.stderr) == (2, True), ended.stderr
