"""Metrics, logs and contents over OTLP."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.common.logging import configure_logging, get_logger
from gateway.observation.families import FAMILIES
from gateway.simulator import Simulator
from gateway_runtime.errors import ConfigError
from gateway_runtime.telemetry.signals import Signals, load_standard_variables, read_signals
from tests.eventually import eventually
from tests.otlp_receiver import OtlpReceiver
from tests.stack import Gateway, serve_gateway

RULES = '[[rule]]\nname = "animal"\npattern = "zebra"\n'
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def chat_body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_metrics_over_otlp_are_those_of_the_page(
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    simulator: Simulator,
    tools_url: str,
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    receiver.metrics.clear()
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        assert (await gateway.post("/api/v1/chat", chat_body("What is 17 * 23?"))).status == 200

        def find_points(name: str) -> list[Any]:
            found = [metric for metric in receiver.metrics if metric.name == name]
            return list(found[-1].sum.data_points or found[-1].histogram.data_points) if found else []

        await eventually(lambda: find_points("gateway.turns"))
        (turns,) = find_points("gateway.turns")
        assert turns.as_double == 1
        await eventually(lambda: find_points("gen_ai.invoke_agent.duration"))
        (duration,) = find_points("gen_ai.invoke_agent.duration")
        assert duration.count == 1 == sum(duration.bucket_counts)
        assert len(duration.bucket_counts) == len(duration.explicit_bounds) + 1
    assert {metric.name for metric in receiver.metrics} == {family.name for family in FAMILIES}
    assert {m.unit for m in receiver.metrics if m.name == "gen_ai.client.operation.duration"} == {"s"}


@pytest.fixture
async def talkative(
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    simulator: Simulator,
    tools_url: str,
    tmp_path: Path,
) -> AsyncGenerator[Gateway]:
    from gateway_runtime.telemetry.tracing import install_tracing

    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    monkeypatch.setattr(install_tracing("agent-gateway", "test"), "captures_content", True)
    async with serve_gateway(database_url, simulator, tools_url, redaction_rules=rules) as gateway:
        yield gateway


async def test_contents_are_redacted_as_what_is_stored(talkative: Gateway, receiver: OtlpReceiver) -> None:
    prompt = "Add a task to feed the zebra"
    assert (await talkative.post("/api/v1/chat", chat_body(prompt))).status == 200
    await eventually(lambda: receiver.find("POST /api/v1/chat"))
    await eventually(lambda: receiver.find("invoke_agent"))  # its turn may end after the answer
    (agent,) = receiver.find("invoke_agent")
    (message,) = json.loads(agent.attributes["gen_ai.input.messages"])
    assert message["parts"] == [{"type": "text", "content": "Add a task to feed the [animal]"}]
    chat = receiver.find("chat ")[0]
    assert json.loads(chat.attributes["gen_ai.input.messages"])[-1]["parts"][0]["content"].endswith("[animal]")
    assert json.loads(chat.attributes["gen_ai.output.messages"])[0]["parts"][0]["type"] == "tool_call"
    (tool,) = receiver.find("execute_tool")
    assert "[animal]" in tool.attributes["gen_ai.tool.call.arguments"]
    assert tool.attributes["gen_ai.tool.call.result"]
    assert "zebra" not in receiver.read_texts()


def test_values_of_the_content_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway_runtime.telemetry.tracing import captures_content

    on = {"true", "TRUE", "1", "span_only", "SPAN_AND_EVENT"}
    for value in (*on, "", "false", "no_content", "event_only", "0"):
        assert captures_content({CONTENT: value}) is (value in on)


async def test_log_lines_have_the_ids_of_their_span(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway_runtime.telemetry.tracing import install_tracing

    text, forwarded = io.StringIO(), list[Mapping[str, object]]()
    monkeypatch.setattr("sys.stderr", text)
    previous = logging.getLogger().handlers
    try:
        configure_logging(json=True, adds_trace_ids=True, forward=forwarded.append)
        log = get_logger("gateway.test")
        with install_tracing("agent-gateway", "test").open_span("test", {}):
            log.info("inside", api_key="secret", note="Bearer abcdefghijklmnop")
        log.info("outside")
    finally:
        configure_logging(json=False)
        logging.getLogger().handlers = previous
    inside, outside = (json.loads(line) for line in text.getvalue().splitlines())
    await eventually(lambda: receiver.find("test"))
    (span,) = receiver.find("test")
    assert (inside["trace_id"], inside["span_id"]) == (span.trace_id, span.span_id)
    assert "trace_id" not in outside
    assert forwarded[0]["api_key"] == "[redacted]"
    assert forwarded[0]["note"] == "[redacted]"


async def test_log_events_arrive_over_otlp_with_their_trace(receiver: OtlpReceiver) -> None:
    from gateway_runtime.telemetry.logs import LogExport
    from gateway_runtime.telemetry.tracing import install_tracing

    receiver.logs.clear()
    export = LogExport("agent-gateway", "test")
    event = {
        "event": "turn_completed",
        "level": "warning",
        "logger": "gateway.agent",
        "tokens": 7,
        "exc_info": "secret",
    }
    with install_tracing("agent-gateway", "test").open_span("logged", {}) as _:
        export.send(event)
    await asyncio.to_thread(export.flush)
    (service, record), *_ = receiver.logs
    assert (service, record.body.string_value, record.severity_text) == ("agent-gateway", "turn_completed", "WARNING")
    assert {item.key for item in record.attributes} == {"logger", "tokens"}
    await eventually(lambda: receiver.find("logged"))
    (span,) = receiver.find("logged")
    assert record.trace_id.hex() == span.trace_id


@pytest.mark.parametrize(
    ("environment", "signals"),
    [
        ({}, Signals()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, Signals(traces=True, metrics=True)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, Signals(traces=True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, Signals()),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"},
            Signals(),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_LOGS_EXPORTER": "otlp"},
            Signals(traces=True, metrics=True, logs=True),
        ),
    ],
)
def test_variables_switch_signals_on(environment: dict[str, str], signals: Signals) -> None:
    assert read_signals(environment) == signals


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin")]
)
def test_unsupported_exporter_is_a_clear_error(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: '{value}' is not supported; use "):
        read_signals({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", name: value})


def test_standard_variables_are_read_from_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("OTEL_SERVICE_NAME=mine\nOTEL_TRACES_SAMPLER=always_off\nOTHER=x\n")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    monkeypatch.delenv("OTHER", raising=False)
    import os

    load_standard_variables(file)
    try:
        assert os.environ["OTEL_SERVICE_NAME"] == "theirs"
        assert os.environ["OTEL_TRACES_SAMPLER"] == "always_off"
        assert "OTHER" not in os.environ
    finally:
        os.environ.pop("OTEL_TRACES_SAMPLER", None)


async def test_collector_that_is_down_costs_no_request(traced_down: Gateway) -> None:
    for _ in range(3):
        assert (await traced_down.post("/api/v1/chat", chat_body("Say hello."))).status == 200


@pytest.fixture
async def traced_down(
    receiver: OtlpReceiver, database_url: str, simulator: Simulator, tools_url: str
) -> AsyncGenerator[Gateway]:
    receiver.status = 503
    try:
        async with serve_gateway(database_url, simulator, tools_url) as gateway:
            yield gateway
    finally:
        receiver.status = 200
