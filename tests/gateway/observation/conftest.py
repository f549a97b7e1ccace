"""A receiver of traces.

A process has one tracer, so all tests of this folder share it.
"""

from collections.abc import Generator

import pytest

from tests.otlp_receiver import OtlpReceiver, receive_otlp

FLUSH_SECONDS = 30.0


@pytest.fixture(scope="session")
def session_receiver() -> Generator[OtlpReceiver]:
    with receive_otlp() as receiver:
        yield receiver


@pytest.fixture
def receiver(session_receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> Generator[OtlpReceiver]:
    """Switch traces on for gateways that the test makes."""
    from gateway_runtime.telemetry import trace_context, tracing

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", session_receiver.endpoint)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    tracer = tracing.install_tracing("agent-gateway", "test")
    trace_context.install_trace_reader(tracer)
    tracer.flush(
        FLUSH_SECONDS
    )  # else spans of an earlier test, which may wait for a retry, would arrive during this one
    session_receiver.spans.clear()
    session_receiver.trace_id = None
    yield session_receiver
    trace_context.install_trace_reader(None)
