"""A plain receiver of OTLP over HTTP, in a thread."""

import gzip
import ssl
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class ReceivedSpan:
    """A span, with values that tests can compare."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    failed: bool
    status_message: str
    start: int
    end: int
    resource: dict[str, Any]


@dataclass
class OtlpReceiver:
    """Received spans, logs and metrics.

    With a `trace_id`, spans of other traces are left out. Answers wait until they `may_answer`.
    """

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    logs: list[tuple[str, Any]] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    trace_id: str | None = None
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def find(self, name: str, **attributes: Any) -> list[ReceivedSpan]:
        """Find spans by the start of their name, and by attributes.

        In the names of attributes, two underscores stand for a dot.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [s for s in list(self.spans) if s.name.startswith(name) and wanted.items() <= s.attributes.items()]

    def get(self, span_id: str) -> ReceivedSpan | None:
        return next((span for span in list(self.spans) if span.span_id == span_id), None)

    def list_ancestors(self, span: ReceivedSpan) -> list[str]:
        """Return the names of the spans above a span, the nearest first."""
        names: list[str] = []
        parent = self.get(span.parent_id)
        while parent is not None:
            names.append(parent.name)
            parent = self.get(parent.parent_id)
        return names

    def read_texts(self) -> str:
        """Return everything that arrived as one text."""
        return repr((self.spans, self.logs, self.metrics))

    def take(self, path: str, body: bytes) -> None:
        """Parse a request."""
        if path.endswith("/traces"):
            request = ExportTraceServiceRequest.FromString(body)
            for group in request.resource_spans:
                resource = _read(group.resource.attributes)
                for span in (_make_span(s, resource) for scope in group.scope_spans for s in scope.spans):
                    # An exporter that gets no answer in time sends a span again, also that of an earlier test.
                    if self.get(span.span_id) is None and self.trace_id in (None, span.trace_id):
                        self.spans.append(span)
        elif path.endswith("/logs"):
            for group in ExportLogsServiceRequest.FromString(body).resource_logs:
                service = _read(group.resource.attributes)["service.name"]
                self.logs += [(service, record) for scope in group.scope_logs for record in scope.log_records]
        elif path.endswith("/metrics"):
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [metric for scope in group.scope_metrics for metric in scope.metrics]


def _read(attributes: Iterable[Any]) -> dict[str, Any]:
    return {item.key: _read_value(item.value) for item in attributes}


def _read_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_read_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _make_span(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        service=resource["service.name"],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        attributes=_read(span.attributes),
        events=[(event.name, _read(event.attributes)) for event in span.events],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        failed=span.status.code == 2,
        status_message=span.status.message,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        resource=resource,
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that left is no error."""


@contextmanager
def receive_otlp(tls: ssl.SSLContext | None = None) -> Generator[OtlpReceiver]:
    """Listen on a loopback port, with TLS if there is a context."""
    receiver: OtlpReceiver

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.headers.append(dict(self.headers))
            receiver.may_answer.wait()
            if receiver.status == 200:
                receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = OtlpReceiver(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
