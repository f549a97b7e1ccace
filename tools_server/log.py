"""Structured logs to standard error: over stdio, standard output is the protocol's."""

import logging
import sys
from typing import Any

import structlog

_QUIETED_LOGGERS = ("mcp", "alembic", "uvicorn.error", "trafilatura", "ddgs", "primp", "asyncio")


def configure_logging(*, json: bool, level: str) -> None:
    """Send structlog's and the standard library's records to stderr in one shape.

    Tracebacks show no local variables: those hold what users wrote.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
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
    root.setLevel(level)
    for chatty in _QUIETED_LOGGERS:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _make_renderer(*, json: bool) -> list[Any]:
    if json:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
