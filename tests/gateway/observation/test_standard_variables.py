"""OpenTelemetry's standard variables.

Each test has a process of its own, because the SDK reads them once.
"""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import create_certificate
from tests.otlp_receiver import OtlpReceiver, receive_otlp

pytestmark = pytest.mark.faults
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"
PROGRAM = """
import json, resource, sys, time
from gateway_runtime.telemetry.signals import load_standard_variables, read_signals
from gateway_runtime.telemetry.tracing import install_tracing

load_standard_variables()
parent, spans = json.loads(sys.argv[1]), int(sys.argv[2])
tracing = install_tracing("agent-gateway", "1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started_at, slowest = time.perf_counter(), 0.0
for number in range(spans):
    began_at = time.perf_counter()
    with tracing.open_span(f"operation {number}", {"text": "x" * 100}, parent=parent):
        headers = tracing.get_headers()
    slowest = max(slowest, time.perf_counter() - began_at)
seconds = time.perf_counter() - started_at
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
began_at = time.perf_counter()
tracing.flush(float(sys.argv[3]))
flushed = time.perf_counter() - began_at
print(json.dumps({"headers": headers, "grown": grown, "seconds": seconds, "flushed": flushed, "slowest": slowest}))
"""


@pytest.fixture
def receiver() -> Generator[OtlpReceiver]:
    with receive_otlp() as receiver:
        yield receiver


def run_program(
    endpoint: str,
    parent: dict[str, str] | None = None,
    spans: int = 1,
    flush_seconds: float = 30.0,
    **variables: str,
) -> dict[str, Any]:
    left_out = ("OTEL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # the exporter's library prefers such a bundle
    own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment = {**own, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(parent), str(spans), str(flush_seconds)]
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_names_and_attributes_of_the_resource(receiver: OtlpReceiver) -> None:
    attributes = "service.name=other,service.instance.id=seven,deployment.environment.name=test"
    run_program(receiver.endpoint, OTEL_RESOURCE_ATTRIBUTES=attributes)
    run_program(receiver.endpoint, OTEL_RESOURCE_ATTRIBUTES=attributes, OTEL_SERVICE_NAME="mine")
    first, second = receiver.spans
    assert (first.service, second.service) == ("other", "mine")
    assert first.resource["service.instance.id"] == "seven"
    assert first.resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("sampler", "argument", "parent", "count"),
    [
        ("", "", None, 1),
        ("always_off", "", None, 0),
        ("traceidratio", "0", SAMPLED, 0),
        ("parentbased_traceidratio", "0", SAMPLED, 1),
        ("parentbased_always_on", "", UNSAMPLED, 0),
    ],
)
def test_sampler_decides(receiver: OtlpReceiver, sampler: str, argument: str, parent: str | None, count: int) -> None:
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    run_program(receiver.endpoint, {"traceparent": parent} if parent else None, **variables)
    assert len(receiver.spans) == count


def test_endpoint_headers_and_compression_of_a_signal_win(receiver: OtlpReceiver) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.endpoint}/prefix/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-general=1",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-tenant=a%20b",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    run_program("http://127.0.0.1:9", **variables)
    assert len(receiver.spans) == 1
    (headers,) = receiver.headers
    assert headers["x-tenant"] == "a b"
    assert headers["Content-Encoding"] == "gzip"
    assert "x-general" not in headers


def test_limits_and_queue(receiver: OtlpReceiver) -> None:
    run_program(receiver.endpoint, OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="7")
    assert receiver.spans[0].attributes == {"text": "xxxxxxx"}
    receiver.spans.clear()
    queue = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "16",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
    }
    receiver.may_answer.clear()
    run_program(receiver.endpoint, spans=500, flush_seconds=1.0, **queue)
    receiver.may_answer.set()
    assert len(receiver.spans) <= 48


@pytest.mark.parametrize(
    ("propagators", "names"),
    [
        (None, {"traceparent", "tracestate"}),
        ("tracecontext,baggage", {"traceparent", "tracestate", "baggage"}),
        ("baggage", {"baggage"}),
        ("none", set[str]()),
    ],
)
def test_propagators_decide_what_goes_on(receiver: OtlpReceiver, propagators: str | None, names: set[str]) -> None:
    caller = {"traceparent": SAMPLED, "tracestate": "vendor=1", "baggage": "user=ann"}
    variables = {} if propagators is None else {"OTEL_PROPAGATORS": propagators}
    assert set(run_program(receiver.endpoint, caller, **variables)["headers"]) == names


def test_certificate_of_the_collector_is_verified(tmp_path: Path) -> None:
    certificate = create_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.cert, certificate.key)
    with receive_otlp(context) as receiver:
        run_program(receiver.endpoint)
        assert receiver.spans == []
        run_program(receiver.endpoint, OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate.cert))
        assert len(receiver.spans) == 1


@pytest.mark.parametrize("kind", ["hangs", "refuses", "fails"])
def test_bad_collector_costs_neither_time_nor_memory(receiver: OtlpReceiver, kind: str) -> None:
    if kind == "hangs":
        receiver.may_answer.clear()
    elif kind == "fails":
        receiver.status = 503
    endpoint = "http://127.0.0.1:9" if kind == "refuses" else receiver.endpoint
    started_at = time.perf_counter()
    result = run_program(endpoint, spans=20_000, flush_seconds=2.0, OTEL_BSP_SCHEDULE_DELAY="20")
    assert result["grown"] < 40, result  # the queue holds 2,048 spans
    assert result["flushed"] < 10, result  # it gives up after two seconds
    assert time.perf_counter() - started_at < 60
