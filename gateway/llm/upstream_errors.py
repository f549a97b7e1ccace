"""Translates errors of model servers to the gateway's.

Servers use several shapes and words.
"""

import ast
import json
import re
import time
from collections.abc import Mapping
from typing import cast

import msgspec

from gateway.common.logging import get_logger
from gateway.domain.errors import (
    GatewayError,
    ModelError,
    ModelKeyRefused,
    ModelNotFound,
    ModelNotPermitted,
    ModelRateLimited,
    ModelRequestRefused,
    ModelStreamBroken,
    ModelUnavailable,
    OutputInvalid,
    PromptTooLong,
    ToolCallUnreadable,
)
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject
from gateway.llm.error_wording import is_prompt_too_long, is_rate_limit, is_unreadable_call
from gateway.llm.rate_limit.token_bucket import DAY_SECONDS, parse_duration
from gateway.llm.tool_repair.json_repair import is_list, is_object

log = get_logger(__name__)

_MAX_MESSAGE_CHARS = 500
_MAX_MATCHED_CHARS = 2_000
_MAX_NESTING = 4
_RATE_LIMIT_CODES = {
    "rate_limit",
    "rate_limit_exceeded",
    "rate_limit_error",
    "rate_limited",
    "resource_exhausted",
    "too_many_requests",
    "throttling_error",
}
_OVERLOAD_CODES = {"capacity_exceeded", "over_capacity", "overloaded_error"}
_UNREADABLE_CODES = {"tool_use_failed", "output_parse_failed"}
_LONG_PROMPT_CODES = {
    "context_length_exceeded",
    "exceed_context_size_error",
    "model_context_window_exceeded",
    "context_window_exceeded",
    "prompt_too_long",
}
_RAW_CALL = re.compile(r"raw=(['\"`])(.*?)\1(?=,? *err(?:or)?[=:]|\s*$|[,.)]\s*$)", re.DOTALL)
_WAIT = re.compile(
    r"(?:try again|retry|wait|available|resets?)\b[^\d\n]{0,40}?"
    r"((?:\d++(?:\.\d++)?\s?(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h)?(?![a-z])"
    r"[ ,]{0,2}(?:and )?)+)",
    re.IGNORECASE,
)
_WAIT_PART = re.compile(r"(\d++(?:\.\d++)?)\s?(milli|ms|s|m|h|)", re.IGNORECASE)
_WAIT_SECONDS = {"milli": 0.001, "ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_WAIT_MEMBERS = (
    ("retryafterms", "ms"),
    ("retryaftermilliseconds", "ms"),
    ("retryafter", ""),
    ("retryafterseconds", ""),
    ("retrydelay", ""),
)
"""Members that name a wait, with their default units.

The names are in lower case without separators.
"""
_FIRST_MILLISECONDS = 10**11
"""The least point in time that is one in milliseconds."""
_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)
_LONG_FIELD = re.compile(r"\b(?:content|input|prompt|instructions)\b")
_NOT_FOUND = re.compile(r"\W*(?:(?:404|resource|error)\W*){0,2}(?:not found)?\W*", re.IGNORECASE)
"""Messages that do not say what was not found."""
_WRONG_ADDRESS = re.compile(r"\b(?:url|route|path|endpoint|page|cannot post)\b", re.IGNORECASE)


class UpstreamError(msgspec.Struct, frozen=True):
    """Error of a model server.

    `written` is what the model wrote, if the server could not read it. `is_object`: the server sent an error object.
    """

    message: str = ""
    code: str = ""
    status: int | None = None
    written: str | None = None
    delay: float | None = None
    is_object: bool = False

    @property
    def wait_seconds(self) -> float | None:
        """The wait that the error names."""
        if self.delay is not None or not (wait := _WAIT.search(self.message, 0, _MAX_MATCHED_CHARS)):
            return self.delay
        parts = _WAIT_PART.findall(wait[1])
        return min(sum(float(number) * _WAIT_SECONDS[unit.lower()] for number, unit in parts), DAY_SECONDS)

    @property
    def is_prompt_too_long(self) -> bool:
        code = self.code.lower()
        if code == "string_above_max_length":
            return bool(_LONG_FIELD.search(self.message))
        return code in _LONG_PROMPT_CODES or is_prompt_too_long(self.message)

    @property
    def is_rate_limit(self) -> bool:
        """Whether an error without a status is about a rate limit."""
        return self.code.lower() in _RATE_LIMIT_CODES or is_rate_limit(self.message)

    @property
    def is_about_model(self) -> bool:
        """Whether a 404 is about the model, not about the address."""
        if "model" in self.message.lower() or "model" in self.code.lower():
            return True
        words = f"{self.message[:_MAX_MATCHED_CHARS]} {self.code.replace('_', ' ')}"
        return self.is_object and not _WRONG_ADDRESS.search(words) and not _NOT_FOUND.fullmatch(self.message)


def decode_error_body(body: bytes) -> object:
    """Decode the body of an error, which may be text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip()


def read_upstream_error(body: object) -> UpstreamError:
    """Read the error object of a body, a frame or a chunk.

    A member of an unexpected type is left out.
    """
    levels = _list_levels(body)
    inner = levels[-1]
    message = _read_message(inner.get("message") or inner)
    written = _find_member(levels, "failed_generation")
    if written is None and "failed_generation" in message:
        written = _find_member(_list_levels(_decode_tail(message)), "failed_generation")
    if written is None:
        written = _read_raw_call(message)
    code = inner.get("code")
    return UpstreamError(
        message=message,
        code=str(code) if isinstance(code, (str, int)) else str(inner.get("type") or inner.get("status") or ""),
        status=_read_status(levels),
        written=written if written is None or isinstance(written, str) else msgspec.json.encode(written).decode(),
        delay=next((delay for level in reversed(levels) if (delay := _read_delay(level)) is not None), None),
        is_object=any(is_object(level.get("error")) for level in levels),
    )


def _list_levels(body: object) -> list[JsonObject]:
    """List nested error objects, the outermost first.

    There is at least one.
    """
    levels: list[JsonObject] = []
    while len(levels) < _MAX_NESTING:
        if is_list(body) and body:
            body = body[0] if not levels else {"message": body}
        if isinstance(body, str):
            # An HTML page helps no client of an API.
            body = {} if body.lstrip().startswith("<") else {"message": body}
        if not is_object(body):
            break
        levels.append(body)
        body = body.get("error") or body.get("detail") or body.get("errors") or _get_inner_error(body)
    return levels or [{}]


def _get_inner_error(body: JsonObject) -> object:
    """Return the error of the server behind OpenRouter."""
    metadata = body.get("metadata")
    raw = metadata.get("raw") if is_object(metadata) else None
    return decode_error_body(raw.encode(errors="replace")) if isinstance(raw, str) else raw


def _read_raw_call(message: str) -> str | None:
    """Return what the model wrote, from a message.

    "" if the message does not have it; None if it is about something else.
    """
    at = message.find("raw=")
    if at >= 0 and (raw := _RAW_CALL.match(message, at)):
        return raw[2]
    if (at := message[:_MAX_MATCHED_CHARS].lower().find("failed to parse input at pos ")) >= 0:
        return message[at:].partition(":")[2].strip()
    return "" if is_unreadable_call(message) else None


def _find_member(levels: list[JsonObject], name: str) -> object:
    return next((level[name] for level in reversed(levels) if level.get(name) is not None), None)


def _decode_tail(message: str) -> object:
    """Decode the JSON that a proxy put behind its own words."""
    try:
        return msgspec.json.decode(message[message.index("{") :].strip())
    except (*JSON_DECODE_ERRORS, ValueError):
        return {}


def _read_status(levels: list[JsonObject]) -> int | None:
    values = (level.get(name) for level in reversed(levels) for name in ("status_code", "status", "code"))
    texts = (str(value) for value in values if isinstance(value, (int, str)))
    return next((int(text) for text in texts if re.fullmatch(r"[45]\d\d", text)), None)


def _read_delay(error: JsonObject) -> float | None:
    """Read the wait that a member names.

    OpenRouter repeats the headers of the server behind it.
    """
    details, metadata = error.get("details"), error.get("metadata")
    extra: JsonObject = metadata if is_object(metadata) else {}
    headers = extra.get("headers")
    sources = [error, extra, headers, *(cast(list[object], details) if is_list(details) else ())]
    return next(
        (delay for source in sources if is_object(source) and (delay := _read_wait_member(source)) is not None),
        _read_reset(headers),
    )


def _read_wait_member(body: Mapping[str, object]) -> float | None:
    """Read the first wait that one of the members tells.

    Names differ in case and separators.
    """
    values = {
        re.sub(r"[-_]", "", name.lower()): str(value)
        for name, value in body.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    written = [(values[name], unit) for name, unit in _WAIT_MEMBERS if name in values]
    waits = (parse_duration(text) for value, unit in written for text in (value + unit, value))
    return next((wait for wait in waits if wait is not None), None)


def _read_reset(headers: object) -> float | None:
    """Read the wait until a reset.

    OpenRouter tells it in milliseconds of the Unix time, others in seconds.
    """
    names = {name.lower(): value for name, value in headers.items()} if is_object(headers) else {}
    value = str(names.get("x-ratelimit-reset") or "")
    if not re.fullmatch(r"\d{9,13}", value):
        return parse_duration(value)
    moment = int(value)
    wait = (moment / 1000 if moment >= _FIRST_MILLISECONDS else moment) - time.time()
    return min(max(wait, 0.0), DAY_SECONDS)


def _read_message(message: object) -> str:
    """Return a message as text.

    Of a list of validation errors, it is the first one with its location.
    """
    if is_object(message) and "loc" not in message:
        message = message.get("detail") or message.get("message") or message.get("msg")
    if isinstance(message, str) and message.lstrip().startswith(("[{", '{"detail"')):
        message = _decode_list(message)
    if is_object(message) and is_list(message.get("detail")):
        message = message["detail"]
    if is_list(message) and message:
        message = message[0]
    if is_object(message):
        location = message.get("loc")
        place = (
            ".".join(map(str, cast(list[object], location)))
            if isinstance(location, list | tuple)
            else str(location or "")
        )
        reason = message.get("msg") or message.get("message")
        message = f"{place}: {reason}" if place else reason
    return message if isinstance(message, str) else ""


def _decode_list(message: str) -> object:
    """Decode a list of validation errors that a server sent as text.

    vLLM writes it as Python does. Other text stays as it is.
    """
    try:
        return ast.literal_eval(message[:_MAX_MATCHED_CHARS].strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return message


def make_stream_error(body: object) -> GatewayError:
    """Translate an error inside a stream, which follows the status 200."""
    error = read_upstream_error(body)
    return _classify(error, error.status, None, "its key", "its address")


def make_status_error(
    status: int, body: object, headers: Mapping[str, str], *, key_setting: str, url_setting: str
) -> GatewayError:
    """Translate an HTTP status with its body.

    The error has the server's message only if that helps callers. `key_setting` and `url_setting` name the settings
    that an administrator must check.
    """
    error = read_upstream_error(body)
    log.warning("model_call_rejected", status=status, code=error.code)
    return _classify(error, status, _read_wait_member(dict(headers.items())), key_setting, url_setting)


def _classify(
    error: UpstreamError, status: int | None, wait: float | None, key_setting: str, url_setting: str
) -> GatewayError:
    is_about_permission = error.code.startswith("model_permission") and status is None
    is_about_model = error.code.lower().startswith("model_") or bool(_MODEL.search(error.message))
    if is_about_permission or (status == 403 and is_about_model):
        return ModelNotPermitted(error.message[:_MAX_MESSAGE_CHARS] or None, param="model")
    if status in (401, 403):
        return ModelKeyRefused(
            f"The model's server refused the gateway's key. The administrator must check {key_setting}."
        )
    if error.code == "json_validate_failed":
        return OutputInvalid()
    if status in (404, 405) and not error.is_about_model:
        return ModelError(f"The model's server has no such address. The administrator must check {url_setting}.")
    if status == 404 or error.code in ("model_decommissioned", "model_not_found"):
        reason = f": {error.message[:_MAX_MESSAGE_CHARS]}" if error.message else "."
        return ModelNotFound(f"The model's server does not know this model{reason}", param="model")
    if status == 429 or (status is None and error.is_rate_limit):
        return ModelRateLimited(retry_after=wait if wait is not None else error.wait_seconds)
    if error.code in _UNREADABLE_CODES or error.written is not None:
        return ToolCallUnreadable(written=error.written or "")
    if error.is_prompt_too_long:
        return PromptTooLong("The prompt is longer than the model's window.", param="messages")
    if status == 413:
        return ModelRequestRefused("The request is too large for this model: shorten the messages or the history.")
    if status in (408, 409, 498) or (status or 0) >= 500 or (status is None and error.code in _OVERLOAD_CODES):
        return ModelUnavailable(retry_after=wait)  # 409: a conflict that ends by itself
    if status is None:
        return ModelStreamBroken()
    if 400 <= status < 500:
        reason = error.message[:_MAX_MESSAGE_CHARS] or "no reason given"
        return ModelRequestRefused(f"The model's server refused the request: {reason}")
    return ModelError()
