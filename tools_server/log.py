"""Structured logs to standard error, because MCP over stdio uses standard output."""

import logging
import sys
from io import StringIO
from typing import TYPE_CHECKING, TextIO

import structlog

from gateway_runtime.log_text import escape_controls
from gateway_runtime.telemetry.trace_context import get_trace_ids

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, Processor

_QUIETED_LOGGERS = ("mcp", "alembic", "uvicorn.error", "httpx2", "trafilatura", "ddgs", "primp", "asyncio")

_OWN_LOGGERS = ("tools_server", "gateway_runtime")
"""Loggers that follow the level DEBUG.

Those of libraries would log every header and byte.
"""


def configure_logging(*, json: bool, level: str, adds_trace_ids: bool = False) -> None:
    """Send structlog's and the standard library's records to stderr in one format.

    Tracebacks have no local variables, because those contain texts of users.
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_add_trace_ids] if adds_trace_ids else []),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_make_renderer(json=json)],
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    number = logging.getLevelNamesMapping()[level]
    root.setLevel(max(number, logging.INFO))
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(number)
    for name in _QUIETED_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _add_trace_ids(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    if (ids := get_trace_ids()) is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def _make_renderer(*, json: bool) -> "list[Processor]":
    if json:
        formatter = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(formatter), structlog.processors.JSONRenderer()]
    return [
        _escape_event,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback),
    ]


def _escape_event(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    """Escape the fields; `_write_traceback` escapes tracebacks."""
    kept = ("exc_info", "stack")
    return {name: value if name in kept else _escape_value(value) for name, value in event.items()}


def _escape_value(value: object) -> object:
    return value if isinstance(value, int | float | None) else escape_controls(str(value))


def _write_traceback(output: TextIO, exc_info: "ExcInfo") -> None:
    traceback = StringIO()
    structlog.dev.plain_traceback(traceback, exc_info)
    output.write(escape_controls(traceback.getvalue()))
