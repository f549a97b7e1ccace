"""Structured logs: one JSON object a line, or coloured text at a terminal. Secrets are removed on the way out."""

import contextvars
import json as _json
import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import lru_cache
from io import StringIO
from typing import Any, cast

import structlog

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_SECRET_NAME = re.compile(r"authorization|api[_-]?key|password|secret|token$|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(gsk_|sk-|tvly-|agw_[0-9a-f]{8}_|eyJ|Bearer |Basic )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@\"']*:[^/\s\"']+(?=@)"
)
_REDACTED = "[redacted]"
_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}
# Whose errors quote rows and values; what they say without them.
_DATABASE_MODULES = ("asyncpg", "sqlalchemy")
_ERROR_FIELDS = ("sqlstate", "table_name", "column_name", "constraint_name", "statement")
_DETAIL_LINE = re.compile(r"(?:\n|\\n)DETAIL: .*", re.DOTALL)
# Control characters, what turns the direction of writing, and what no reader sees.
_INVISIBLE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# Local variables would bring prompts and keys into the log.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return _redact_secrets(event)


def _redact_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        return {key: _REDACTED if _is_secret_name(str(key)) else _redact_secrets(inner) for key, inner in given.items()}
    if isinstance(value, list | tuple):
        return [_redact_secrets(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, str) and "DETAIL: " in value:
        return _DETAIL_LINE.sub("", value)
    return value


@lru_cache(maxsize=1024)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _redact_database_errors(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """With exceptions of the database, and those that they come from, only the sort and the place are told."""
    given = event.get("exc_info")
    given = sys.exc_info() if given is True else given
    error = cast(Any, given)[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        known: dict[int, BaseException] = {}
        told = _redact_error(error, known)
        event["exc_info"] = told if any(isinstance(one, _RedactedError) for one in known.values()) else error
    return event


class _RedactedError(Exception):
    """In the place of an exception whose text is not for the log."""


def _redact_error(error: Any, copies: dict[int, BaseException], *, hide: bool = False) -> BaseException:
    """A copy of an exception, for its looks alone, and of all that led to it. `known`: the copies so far, by id;
    `below`: it is one of those that led to an exception of the database."""
    if id(error) in copies:
        return copies[id(error)]
    hidden = hide or type(error).__module__.partition(".")[0] in _DATABASE_MODULES
    copy: Any
    if issubclass(type(error), BaseExceptionGroup):
        copies[id(error)] = Exception(error.message)  # for one of its own that it has led to
        copy = BaseExceptionGroup(error.message, [_redact_error(one, copies, hide=hide) for one in error.exceptions])
    else:
        names = {"__module__": type(error).__module__, "__qualname__": type(error).__qualname__}
        looks = type(type(error).__name__, (_RedactedError if hidden else Exception,), names)
        places = [f"{name}={value}" for name in _ERROR_FIELDS if (value := getattr(error, name, None))]
        copy = looks(" ".join(places) if hidden else str(error))
    copies[id(error)] = copy
    copy.__traceback__ = error.__traceback__
    for name in ("__cause__", "__context__"):
        if (led := getattr(error, name)) is not None:
            setattr(copy, name, _redact_error(led, copies, hide=hidden))
    copy.__suppress_context__ = error.__suppress_context__
    return copy


def _escape_value(value: Any) -> Any:
    """A value without what a terminal would do, or not show: in its place stands its escape, `\\x1b`."""
    if isinstance(value, dict):
        return {_escape_value(name): _escape_value(inner) for name, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_escape_value(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, str):
        return _INVISIBLE_CHARACTERS.sub(_escape_match, value)
    return value


def _escape_match(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escape_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    kept = {name: event.pop(name) for name in ("exc_info", "stack") if name in event}
    return {**_escape_value(dict(event)), **kept}


def _redact_line(_logger: Any, _method: str, line: str) -> str:
    """What is in texts, wherever they came from: a traceback's, too."""
    return _SECRET_TEXT.sub(_REDACTED, line)


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


class _LineLogger:
    """Where the gateway's own lines go: past the standard library, whose record of each takes as long as the line."""

    handler = logging.StreamHandler(sys.stderr)

    def __init__(self, name: str) -> None:
        self.name = name
        self.standard = logging.getLogger(name)

    def info(self, line: str) -> None:
        with suppress(Exception):  # a log that nobody takes any more stops no turn
            self.handler.stream.write(f"{line}\n")
            self.handler.flush()

    debug = warning = error = critical = info


def _filter_by_level(lines: _LineLogger, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if not lines.standard.isEnabledFor(_LEVELS[method]):
        raise structlog.DropEvent
    return event


def _combine_processors(renderer: list[Any]) -> Any:
    """All of it as one processor. What cannot be written down breaks its line, never who says it."""

    def rendered(lines: _LineLogger, method: str, event: MutableMapping[str, Any]) -> str:
        told: Any = event
        try:
            for process in renderer:
                told = process(lines, method, told)
        except Exception as error:  # noqa: BLE001 - an exception whose own text breaks, say
            lost = {"event": "line_not_logged", "level": "error", "logger": lines.name, "error": type(error).__name__}
            return _json.dumps(lost)
        return told

    return rendered


_PROCESSORS: list[Any] = []
"""Changed in place: loggers that were used before `configure` keep it."""


def configure_logging(*, json: bool, level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to stderr in one shape. May be called again."""
    shared: list[Any] = [
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[Any] = (
        [_redact_database_errors, _TRACEBACKS, _redact_event, structlog.processors.JSONRenderer(), _redact_line]
        if json
        else [_redact_database_errors, _redact_event, _escape_event, _make_console_renderer(), _redact_line]
    )
    _PROCESSORS[:] = [_filter_by_level, *shared, _combine_processors(renderer)]
    structlog.configure(processors=_PROCESSORS, logger_factory=_LineLogger, cache_logger_on_first_use=True)
    handler = _LineLogger.handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # At DEBUG the models' SDKs would log whole prompts.
    for chatty in (
        "uvicorn.access", "uvicorn.error", "httpx", "httpx2", "alembic", "mcp", "sse_starlette", "groq", "openai",
    ):  # fmt: skip
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It logs what servers sent, with tracebacks. What matters of that we say ourselves.
    logging.getLogger("mcp.client").setLevel(logging.CRITICAL)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def _make_console_renderer() -> Any:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)


def _write_traceback(out: Any, exc_info: Any) -> None:
    whole = StringIO()
    structlog.dev.plain_traceback(whole, exc_info)
    out.write("\n".join(_escape_value(line.replace("\t", "    ")) for line in whole.getvalue().split("\n")))


def get_logger(name: str) -> Any:
    """A structlog logger; `name` is the module's."""
    return structlog.stdlib.get_logger(name)
