"""Translates errors of model servers to the gateway's.

Servers use several shapes and words.
"""

import re
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
from gateway.llm.rate_limit.token_bucket import parse_duration
from gateway.llm.tool_repair.json_repair import is_list, is_object

log = get_logger(__name__)

_MAX_MESSAGE_CHARS = 500
_RATE_LIMIT_CODES = {"rate_limit_exceeded", "429"}
_OVERLOAD_CODES = {"capacity_exceeded", "over_capacity", "overloaded_error"}
_UNREADABLE_CODES = {"tool_use_failed", "output_parse_failed"}
_LONG_PROMPT_CODES = {"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"}
_LONG_PROMPT = re.compile(
    r"context[ _](?:length|window|size)|maximum (?:context|prompt|input)|prompt (?:is )?too long"
    r"|too many (?:input )?tokens|input (?:is )?too long|exceeds? the (?:model's )?(?:max|context|available context)"
    r"|max_model_len|reduce the length of the (?:messages|prompt|input)",
    re.IGNORECASE,
)
_UNREADABLE_CALL = re.compile(
    r"(?:failed to|error|cannot|could not) pars(?:e|ing) (?:the )?(?:tool|function)", re.IGNORECASE
)
_RAW_CALL = re.compile(r"\braw=(['\"])(.*)\1", re.DOTALL)
_WAIT = re.compile(r"(?:try again|retry) (?:in|after) ([\d.]+ ?(?:ms|s|m|h)?(?:[\d.]+s)?)", re.IGNORECASE)


class UpstreamError(msgspec.Struct, frozen=True):
    """Error of a model server.

    `written` is what the model wrote, if the server could not read it.
    """

    message: str = ""
    code: str = ""
    status: int | None = None
    written: str | None = None

    @property
    def wait_seconds(self) -> float | None:
        """The wait that the message names."""
        wait = _WAIT.search(self.message)
        return parse_duration(wait[1].replace(" ", "")) if wait else None

    @property
    def is_prompt_too_long(self) -> bool:
        return self.code in _LONG_PROMPT_CODES or bool(_LONG_PROMPT.search(self.message))


def read_upstream_error(body: object) -> UpstreamError:
    """Read the error object of a body, a frame or a chunk.

    A member of an unexpected type is left out.
    """
    if is_list(body) and body:
        body = body[0]
    if is_object(body):
        body = body.get("error") or body.get("detail") or body
    if isinstance(body, str):
        # An HTML page helps no client of an API.
        body = {} if body.lstrip().startswith("<") else {"message": body}
    if is_list(body):
        body = {"message": {"detail": body}}
    if not is_object(body):
        return UpstreamError()
    message, code, status = _read_message(body.get("message")), body.get("code"), body.get("status_code")
    written = body.get("failed_generation")
    if written is None and (raw := _RAW_CALL.search(message)):
        written = raw[2]
    if written is None and _UNREADABLE_CALL.search(message):
        written = ""
    return UpstreamError(
        message=message,
        code=str(code) if isinstance(code, (str, int)) else str(body.get("type") or ""),
        status=status if isinstance(status, int) else None,
        written=written if written is None or isinstance(written, str) else msgspec.json.encode(written).decode(),
    )


def _read_message(message: object) -> str:
    """Return a message as text.

    Of a list of validation errors, it is the first one with its location.
    """
    if is_object(message):
        message = message.get("detail") or message.get("message")
    if is_list(message) and message:
        message = message[0]
    if is_object(message):
        location = message.get("loc")
        place = ".".join(map(str, cast(list[object], location))) if is_list(location) else ""
        message = f"{place}: {message.get('msg')}" if place else message.get("msg")
    return message if isinstance(message, str) else ""


def make_stream_error(body: object) -> GatewayError:
    """Translate an error inside a stream, which follows the status 200."""
    error = read_upstream_error(body)
    if error.code in _RATE_LIMIT_CODES or error.status == 429:
        return ModelRateLimited(retry_after=error.wait_seconds)
    if error.code in _OVERLOAD_CODES or (error.status or 0) >= 498:
        return ModelUnavailable()
    if error.code == "json_validate_failed":
        return OutputInvalid()
    if error.code in _UNREADABLE_CODES or error.written is not None:
        return ToolCallUnreadable(written=error.written or "")
    if error.is_prompt_too_long:
        return _make_prompt_too_long()
    if error.status == 400:
        return ModelRequestRefused(f"The model's server refused the request: {error.message[:_MAX_MESSAGE_CHARS]}")
    return ModelStreamBroken()


def make_status_error(
    status: int, body: object, headers: Mapping[str, str], *, key_setting: str, url_setting: str
) -> GatewayError:
    """Translate an HTTP status with its body.

    The error has the server's message only if that helps callers. `key_setting` and `url_setting` name the settings
    that an administrator must check.
    """
    error = read_upstream_error(body)
    log.warning("model_call_rejected", status=status, code=error.code)
    if status == 403 and error.code.startswith("model_permission"):
        return ModelNotPermitted(error.message[:_MAX_MESSAGE_CHARS] or None, param="model")
    if status in (401, 403):
        return ModelKeyRefused(
            f"The model's server refused the gateway's key. The administrator must check {key_setting}."
        )
    if error.code == "json_validate_failed":
        return OutputInvalid()
    if status == 404 and not error.message and not error.code:
        return ModelError(f"The model's server has no such address. The administrator must check {url_setting}.")
    if status == 404 or error.code == "model_decommissioned":
        return ModelNotFound("The model's server does not know this model.", param="model")
    wait = parse_duration(headers.get("retry-after"))
    if status == 429:
        return ModelRateLimited(retry_after=wait if wait is not None else error.wait_seconds)
    if error.code in _UNREADABLE_CODES or error.written is not None:
        return ToolCallUnreadable(written=error.written or "")
    if error.is_prompt_too_long:
        return _make_prompt_too_long()
    if status == 413:
        return ModelRequestRefused("The request is too large for this model: shorten the messages or the history.")
    if status in (408, 409, 498) or status >= 500:  # 409: a conflict that ends by itself
        return ModelUnavailable(retry_after=wait)
    if 400 <= status < 500:
        reason = error.message[:_MAX_MESSAGE_CHARS] or "no reason given"
        return ModelRequestRefused(f"The model's server refused the request: {reason}")
    return ModelError()


def _make_prompt_too_long() -> PromptTooLong:
    return PromptTooLong("The prompt is longer than the model's window.", param="messages")
