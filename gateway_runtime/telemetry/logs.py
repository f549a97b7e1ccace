"""Logs over OTLP, as OTEL_LOGS_EXPORTER=otlp asks."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from opentelemetry import context as otel_context
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult

from gateway_runtime.telemetry.export_report import ExportReport
from gateway_runtime.telemetry.resource import create_resource

_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_OWN_FIELDS = frozenset({"event", "level", "timestamp", "trace_id", "span_id", "exc_info", "exception", "stack"})
"""Fields that are no attributes of a record.

A record has places of its own for them, or they may quote users.
"""


class _ReportingExporter(LogRecordExporter):
    def __init__(self) -> None:
        self._inner = OTLPLogExporter()
        self._report = ExportReport("logs")

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        result = self._inner.export(batch)
        self._report.record(succeeded=result is LogRecordExportResult.SUCCESS, count=len(batch))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # the inner exporter holds nothing back


class LogExport:
    """Sends log events in the background.

    The current span is part of each.
    """

    def __init__(self, service: str, version: str) -> None:
        self._provider = LoggerProvider(resource=create_resource(service, version), shutdown_on_exit=False)
        self._provider.add_log_record_processor(BatchLogRecordProcessor(_ReportingExporter()))

    def send(self, event: Mapping[str, object]) -> None:
        """Send an event of structlog, whose values are redacted."""
        name = str(event.get("logger", ""))
        record = LogRecord(
            timestamp=_read_timestamp(event.get("timestamp")),
            observed_timestamp=time.time_ns(),
            context=otel_context.get_current(),
            severity_text=str(event.get("level", "info")).upper(),
            severity_number=_SEVERITIES.get(str(event.get("level")), SeverityNumber.INFO),
            body=str(event.get("event", "")),
            attributes={
                key: value if isinstance(value, str | bool | int | float) else str(value)
                for key, value in event.items()
                if key not in _OWN_FIELDS and not key.startswith("_") and value is not None
            },
        )
        self._provider.get_logger(name).emit(record)

    def flush(self) -> None:
        """Send the events that wait."""
        self._provider.force_flush()


def _read_timestamp(value: object) -> int:
    try:
        return int(datetime.fromisoformat(str(value)).timestamp() * 1e9)
    except ValueError:
        return time.time_ns()
