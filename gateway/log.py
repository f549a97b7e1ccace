"""Structured logs: one JSON object a line, or coloured text at a terminal. Secrets are removed on the way out."""

import contextvars
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_SECRET_NAME = re.compile(r"authorization|api[_-]?key|password|secret|token$|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(gsk_|sk-|tvly-|agw_[0-9a-f]{8}_|eyJ|Bearer |Basic )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@\"']*:[^/\s\"']+(?=@)"
)
_REDACTED = "[redacted]"
# Local variables would bring prompts and keys into the log.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return _without_secrets(event)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        return {
            key: _REDACTED if _SECRET_NAME.search(str(key)) else _without_secrets(inner) for key, inner in given.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in cast("list[Any]", value)]
    return value


def _redact_line(_logger: Any, _method: str, line: str) -> str:
    """What is in texts, wherever they came from: a traceback's, too."""
    return _SECRET_TEXT.sub(_REDACTED, line)


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


def configure(*, json: bool, level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to stderr in one shape. May be called again."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[Any] = (
        [_TRACEBACKS, _redact, structlog.processors.JSONRenderer(), _redact_line]
        if json
        else [_redact, _console(), _redact_line]
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for chatty in ("uvicorn.access", "uvicorn.error", "httpx", "httpx2", "alembic", "mcp", "sse_starlette"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It logs what servers sent, with tracebacks. What matters of that we say ourselves.
    logging.getLogger("mcp.client").setLevel(logging.CRITICAL)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def _console() -> Any:
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)


def get_logger(name: str) -> Any:
    """A structlog logger; `name` is the module's."""
    return structlog.stdlib.get_logger(name)
