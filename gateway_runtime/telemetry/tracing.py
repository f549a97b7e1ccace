"""Traces by OpenTelemetry's SDK, sent as OTLP over HTTP in the background.

The MCP SDK has spans of its own for the messages that it sends and receives. They go the same way.
"""

import asyncio
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway_runtime.telemetry.export_report import ExportReport
from gateway_runtime.telemetry.observer import AttributeValue, OpenSpan
from gateway_runtime.telemetry.resource import create_resource
from gateway_runtime.telemetry.trace_context import TraceReader, install_trace_reader

CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CONTENT_VALUES = frozenset({"true", "1", "span_only", "span_and_event"})
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "server": SpanKind.SERVER}
_SDK_PREFIX = "MCP send "
"""Prefix of the MCP SDK's client spans, unknown to the conventions."""
_TARGETS = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
"""Attributes for the targets in the names of the SDK's client spans."""
_CONTENTS = frozenset({"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"})
_MAX_NAME_LENGTH = 200
_MCP_SCOPE = "mcp-python-sdk"


class _OpenOtelSpan(OpenSpan):
    def __init__(self, span: Span) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(dict(attributes))

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.add_event(name, dict(attributes))

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


class _ReportingSpanExporter(SpanExporter):
    def __init__(self, report: ExportReport) -> None:
        self._inner = OTLPSpanExporter()
        self._report = report

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._report.record(succeeded=result is SpanExportResult.SUCCESS, count=len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class _CleaningProcessor(BatchSpanProcessor):
    """Removes messages and stack traces of errors, and cuts names.

    It does so before a span waits. Errors may quote users or name addresses. The MCP SDK writes both, and names and
    ids of any length that its peers choose, of which a full queue would hold gigabytes. Its names get the form of the
    conventions.
    """

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(_clean_span(span))


def _clean_span(span: ReadableSpan) -> ReadableSpan:
    is_of_sdk = span.instrumentation_scope is not None and span.instrumentation_scope.name == _MCP_SCOPE
    if not is_of_sdk and len(span.name) <= _MAX_NAME_LENGTH:
        return span
    name = span.name.removeprefix(_SDK_PREFIX)[:_MAX_NAME_LENGTH]
    attributes = dict(span.attributes or {})
    if is_of_sdk:
        attributes = {key: _cut_value(key, value) for key, value in attributes.items()}
        method, _, target = name.partition(" ")
        if span.name.startswith(_SDK_PREFIX) and target and method in _TARGETS:
            attributes[_TARGETS[method]] = target
            if method == "tools/call":
                attributes["gen_ai.operation.name"] = "execute_tool"
    return ReadableSpan(
        name=name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        events=tuple(event for event in span.events if event.name != "exception"),
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _cut_value(key: str, value: object) -> Any:
    return value[:_MAX_NAME_LENGTH] if isinstance(value, str) and key not in _CONTENTS else value


def captures_content(environment: Mapping[str, str]) -> bool:
    """Return whether texts may be attributes of spans."""
    return environment.get(CONTENT_VARIABLE, "").strip().lower() in _CONTENT_VALUES


class Tracing(TraceReader):
    """The tracer of this process.

    `captures_content`: spans get the texts of prompts, answers and tools.
    """

    def __init__(self, service: str, version: str, instance: str | None = None) -> None:
        self.report = ExportReport("traces")
        self._provider = TracerProvider(resource=create_resource(service, version, instance), shutdown_on_exit=False)
        self._provider.add_span_processor(_CleaningProcessor(_ReportingSpanExporter(self.report)))
        if "OTEL_PROPAGATORS" not in os.environ:
            # Baggage may hold anything of the caller's, and would reach every MCP server and the model's server.
            propagate.set_global_textmap(TraceContextTextMapPropagator())
        trace.set_tracer_provider(self._provider)
        self._tracer = self._provider.get_tracer(service, version)
        self.captures_content = captures_content(os.environ)
        install_trace_reader(self)

    @contextmanager
    def open_span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        kind: Literal["internal", "client", "server"] = "internal",
        parent: Mapping[str, str] | None = None,
        links: Sequence[Mapping[str, str]] = (),
    ) -> Generator[OpenSpan]:
        """Open a span for a block.

        Its parent is that of the headers `parent`, else the current span. An exception fails it, without its message.
        """
        token = otel_context.attach(_extract_context(parent)) if parent is not None else None
        try:
            with self._tracer.start_as_current_span(
                name,
                kind=_KINDS[kind],
                attributes=dict(attributes),
                links=[link for headers in links if (link := _make_link(headers)) is not None],
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                open_span = _OpenOtelSpan(span)
                try:
                    yield open_span
                except asyncio.CancelledError:
                    span.set_attribute("error.type", "cancelled")
                    raise
                except Exception as error:
                    open_span.fail(str(getattr(error, "code", None) or type(error).__name__))
                    raise
        finally:
            if token is not None:
                otel_context.detach(token)

    def record_span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        started_at: float,
        parent: Mapping[str, str] | None = None,
    ) -> None:
        """Record a span that ends now.

        `started_at` is a time in seconds since 1970.
        """
        context = None if parent is None else _extract_context(parent)
        span = self._tracer.start_span(
            name, context=context, attributes=dict(attributes), start_time=int(started_at * 1e9)
        )
        span.end()

    def describe_current_span(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes to the span that is current in this task."""
        trace.get_current_span().set_attributes(dict(attributes))

    def get_headers(self) -> dict[str, str]:
        """Return the headers that continue the current trace."""
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    def get_ids(self) -> tuple[str, str] | None:
        """Return the ids of the current trace and span."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def flush(self, seconds: float) -> None:
        """Send the spans that wait, for at most `seconds`.

        The SDK's own limit does not hold while a collector does not answer, so it runs in a thread that may be left.
        """
        thread = threading.Thread(target=self._provider.force_flush, name="trace flush", daemon=True)
        thread.start()
        thread.join(seconds)


def _extract_context(headers: Mapping[str, str]) -> Context:
    """Return the context that headers name, or the current one.

    Without any propagator (OTEL_PROPAGATORS=none), the API returns None, against its type.
    """
    context = cast("Context | None", propagate.extract(dict(headers)))
    return otel_context.get_current() if context is None else context


def _make_link(headers: Mapping[str, str]) -> Link | None:
    context = trace.get_current_span(_extract_context(headers)).get_span_context()
    return Link(context) if context.is_valid else None


_installed: Tracing | None = None


def install_tracing(service: str, version: str, instance: str | None = None) -> Tracing:
    """Return the tracer of this process, which is made once."""
    global _installed
    if _installed is None:
        _installed = Tracing(service, version, instance)
    return _installed
