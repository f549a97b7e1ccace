"""Structured logs without secrets.

They are one JSON object a line, or coloured text at a terminal.
"""

import contextvars
import json as _json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from io import StringIO
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor

from gateway_runtime.telemetry.trace_context import get_trace_ids

EventProcessor = Callable[[object, str, EventDict], EventDict]
"""A processor that returns an event: (logger, name of the method, event)."""

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_SECRET_NAME = re.compile(r"authorization|api[_-]?key|password|secret|token$|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(gsk_|sk-|tvly-|agw_[0-9a-f]{8}_|eyJ|Bearer |Basic )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@\"']*:[^/\s\"']+(?=@)"
)
_SECRET_MARKS = ("gsk_", "sk-", "tvly-", "agw_", "eyJ", "Bearer ", "Basic ", "://")
"""Each match of `_SECRET_TEXT` contains one.

The search for them takes a tenth of the time.
"""
_REDACTED = "[redacted]"
_QUIETED_LOGGERS = (
    "uvicorn.access",
    "uvicorn.error",
    "httpx",
    "httpx2",
    "alembic",
    "mcp",
    "sse_starlette",
    "groq",
    "openai",
)
"""Loggers of libraries that log warnings only."""
_OWN_LOGGERS = ("gateway", "gateway_runtime")
"""Loggers that follow the level DEBUG; libraries stay at INFO.

At DEBUG the SDKs of the models would log whole prompts, and HTTP clients every header of every answer.
"""
_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}
# Messages of these errors contain rows and values, so the log has only the fields below.
_DATABASE_MODULES = ("asyncpg", "sqlalchemy")
_ERROR_FIELDS = ("sqlstate", "table_name", "column_name", "constraint_name", "statement")
_DETAIL_LINE = re.compile(r"(?:\n|\\n)DETAIL: .*", re.DOTALL)
# Control characters, direction marks and characters without a glyph, with which a value could forge a line.
_INVISIBLE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# Without local variables, because those contain prompts and keys.
_TRACEBACK_RENDERER = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def _redact_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    return _redact_fields(event)


_DETAIL_MARK = "DETAIL: "
_PLAIN_TYPES = (int, float, bool, type(None))


def _redact_fields(fields: Mapping[str, object]) -> dict[str, object]:
    return {
        key: _REDACTED
        if _is_secret_name(str(key))
        else value
        if type(value) in _PLAIN_TYPES or (isinstance(value, str) and _DETAIL_MARK not in value)
        else _redact_value(value)
        for key, value in fields.items()
    }


def _redact_value(value: object) -> object:
    """Redact fields with secret names, and rows in database errors.

    The fields may be at any depth; database errors quote rows.
    """
    if isinstance(value, dict):
        return _redact_fields(cast("dict[str, object]", value))
    if isinstance(value, list | tuple):
        return [_redact_value(inner) for inner in cast("list[object]", value)]
    if isinstance(value, str) and _DETAIL_MARK in value:
        return _DETAIL_LINE.sub("", value)
    return value


@lru_cache(maxsize=1024)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _redact_database_errors(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace database errors by copies without rows and values.

    Errors that database errors caused are replaced, too.
    """
    exc_info: object = event.get("exc_info")
    if exc_info is True:
        exc_info = sys.exc_info()
    error = cast("tuple[object, ...]", exc_info)[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(error, BaseException):
        copies: dict[int, BaseException] = {}
        copy = _copy_redacted(error, copies)
        is_redacted = any(isinstance(copied, _RedactedError) for copied in copies.values())
        event["exc_info"] = copy if is_redacted else error
    return event


class _RedactedError(Exception):
    """Base class of copies of errors whose message is not logged."""


def _copy_redacted(error: BaseException, copies: dict[int, BaseException], *, redact: bool = False) -> BaseException:
    """Copy an error and its causes for a traceback.

    A copy has the class name, the traceback, and the message if it may be logged. `copies` has the copies so far, by
    the id of the original. `redact`: the error caused a database error.
    """
    if id(error) in copies:
        return copies[id(error)]
    redact_causes = redact or type(error).__module__.partition(".")[0] in _DATABASE_MODULES
    copy: BaseException
    if issubclass(type(error), BaseExceptionGroup):  # isinstance would leave the type of its members unknown
        group = cast("BaseExceptionGroup[BaseException]", error)
        copies[id(error)] = Exception(group.message)  # ends the recursion if the group caused one of its members
        members = [_copy_redacted(member, copies, redact=redact) for member in group.exceptions]
        copy = BaseExceptionGroup(group.message, members)
    else:
        copy = _copy_class_and_message(error, redact=redact_causes)
    copies[id(error)] = copy
    copy.__traceback__ = error.__traceback__
    if error.__cause__ is not None:
        copy.__cause__ = _copy_redacted(error.__cause__, copies, redact=redact_causes)
    if error.__context__ is not None:
        copy.__context__ = _copy_redacted(error.__context__, copies, redact=redact_causes)
    copy.__suppress_context__ = error.__suppress_context__
    return copy


def _copy_class_and_message(error: BaseException, *, redact: bool) -> BaseException:
    attributes = {"__module__": type(error).__module__, "__qualname__": type(error).__qualname__}
    base = _RedactedError if redact else Exception
    error_class = cast("type[Exception]", type(type(error).__name__, (base,), attributes))
    if not redact:
        return error_class(str(error))
    fields = [f"{name}={value}" for name in _ERROR_FIELDS if (value := getattr(error, name, None))]
    return error_class(" ".join(fields))


def _escape_value(value: object) -> object:
    """Replace control and invisible characters by their escapes.

    An escape is, for example, `\x1b`. Texts at any depth are processed.
    """
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        return {_escape_value(name): _escape_value(inner) for name, inner in mapping.items()}
    if isinstance(value, list | tuple):
        return [_escape_value(inner) for inner in cast("list[object]", value)]
    if isinstance(value, str):
        return _escape_text(value)
    return value


def _escape_text(text: str) -> str:
    return _INVISIBLE_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _escape_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape all fields except tracebacks, which `_write_traceback` escapes line by line."""
    tracebacks = {name: event.pop(name) for name in ("exc_info", "stack") if name in event}
    return {**{_escape_text(name): _escape_value(value) for name, value in event.items()}, **tracebacks}


def _with_redacted_line(render: Processor) -> Callable[[object, str, EventDict], str]:
    """Wrap a renderer: secrets in the line are redacted, also in tracebacks."""

    def render_redacted(logger: object, method: str, event: EventDict) -> str:
        line = str(render(logger, method, event))
        has_mark = any([mark in line for mark in _SECRET_MARKS])  # noqa: C419 - a generator takes twice as long
        return _SECRET_TEXT.sub(_REDACTED, line) if has_mark else line

    return render_redacted


def _add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


def _add_trace_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    if (ids := get_trace_ids()) is not None:
        event["trace_id"], event["span_id"] = ids
    return event


class _LineLogger:
    """Writes the gateway's own lines to the handler's stream.

    The lines bypass the standard library. See docs/adr/0021.
    """

    handler = logging.StreamHandler(sys.stderr)

    def __init__(self, name: str) -> None:
        self.name = name
        self.standard = logging.getLogger(name)

    def info(self, line: str) -> None:
        with suppress(Exception):  # a closed or full log must not end a turn
            self.handler.stream.write(f"{line}\n")
            self.handler.flush()

    debug = warning = error = critical = info


def _filter_by_level(logger: _LineLogger, method: str, event: EventDict) -> EventDict:
    if not logger.standard.isEnabledFor(_LEVELS[method]):
        raise structlog.DropEvent
    return event


def _forward_event(forward: Callable[[Mapping[str, object]], None]) -> EventProcessor:
    """Pass redacted events on, before they become a line."""

    def forward_event(_logger: object, _method: str, event: EventDict) -> EventDict:
        texts = {name: _SECRET_TEXT.sub(_REDACTED, value) for name, value in event.items() if isinstance(value, str)}
        forward({**event, **texts})
        return event

    return forward_event


def _combine_processors(processors: list[EventProcessor], render: Callable[[object, str, EventDict], str]) -> Processor:
    """Combine processors and renderer.

    An error in them is logged instead of raised.
    """

    def render_line(logger: _LineLogger, method: str, event: EventDict) -> str:
        try:
            for process in processors:
                event = process(logger, method, event)
            return render(logger, method, event)
        except Exception as error:  # noqa: BLE001 - for example an exception whose __str__ raises
            name = type(error).__name__
            return _json.dumps({"event": "line_not_logged", "level": "error", "logger": logger.name, "error": name})

    return render_line


@lru_cache(maxsize=8)
def _get_json_encoder(default: Callable[[object], object]) -> _json.JSONEncoder:
    return _json.JSONEncoder(default=default)


def _encode_json(event: EventDict, default: Callable[[object], object]) -> str:
    """Encode as `json.dumps` does, which would make an encoder for each line."""
    return _get_json_encoder(default).encode(event)


_PROCESSORS: list[Processor] = []
"""Processors of all records, changed in place.

Loggers cache the list at their first use, which may precede `configure_logging`.
"""


def configure_logging(
    *,
    json: bool,
    level: str = "INFO",
    adds_trace_ids: bool = False,
    forward: Callable[[Mapping[str, object]], None] | None = None,
) -> None:
    """Send structlog's and the standard library's records to stderr in one format.

    May be called again. `forward` also gets each event, redacted.
    """
    shared_processors: list[Processor] = [
        _add_request_id,
        *([_add_trace_ids] if adds_trace_ids else []),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    processors: list[EventProcessor]
    if json:
        processors = [_redact_database_errors, _TRACEBACK_RENDERER, _redact_event]
        render = _with_redacted_line(structlog.processors.JSONRenderer(_encode_json))
    else:
        processors = [_redact_database_errors, _redact_event, _escape_event]
        render = _with_redacted_line(_make_console_renderer())
    if forward is not None:
        processors.append(_forward_event(forward))
    _PROCESSORS[:] = [_filter_by_level, *shared_processors, _combine_processors(processors, render)]
    structlog.configure(processors=_PROCESSORS, logger_factory=_LineLogger, cache_logger_on_first_use=True)
    handler = _LineLogger.handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors, render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.INFO))
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(number)
    for name in _QUIETED_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # The SDK logs data of MCP servers with tracebacks; the gateway logs its own events about servers.
    logging.getLogger("mcp.client").setLevel(logging.CRITICAL)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def _make_console_renderer() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)


def _write_traceback(output: TextIO, exc_info: ExcInfo) -> None:
    traceback = StringIO()
    structlog.dev.plain_traceback(traceback, exc_info)
    output.write("\n".join(_escape_text(line.replace("\t", "    ")) for line in traceback.getvalue().split("\n")))


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the structlog logger of the module `name`."""
    return structlog.get_logger(name)
