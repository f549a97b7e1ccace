"""The shown part of an answer: selection, redaction, truncation."""

import json
from dataclasses import dataclass
from typing import Any, cast

from gateway_runtime.http_tools.definitions import ResultRule
from gateway_runtime.json_limits import JsonLimitExceeded, check_json
from tools_server.http_tools.redaction import SecretRedactor

_MAX_ITEMS = 200_000
_MAX_SELECTED = 10_000
_MISSING = object()
_TEXT_TYPES = (
    "text/",
    "application/xml",
    "application/javascript",
    "application/x-ndjson",
    "application/yaml",
    "application/x-www-form-urlencoded",
)
_FIRST_ERROR_STATUS = 400


@dataclass(frozen=True)
class RawAnswer:
    """Status, media type and beginning of an answer.

    `is_cut`: the body was longer than is read.
    """

    status: int
    content_type: str
    charset: str
    body: bytes
    is_cut: bool


@dataclass(frozen=True)
class ShownAnswer:
    """Text for the model, and whether it reports an error."""

    text: str
    is_error: bool


def show_answer(answer: RawAnswer, rule: ResultRule, redactor: SecretRedactor) -> ShownAnswer:
    """Select, redact and cut an answer."""
    is_error = answer.status >= _FIRST_ERROR_STATUS
    text, is_wrong = _show_body(answer, None if is_error else rule.select, redactor)
    text = _cut(text, rule.max_bytes, answer.is_cut)
    if is_error:
        return ShownAnswer(f"The server answered with status {answer.status}.\n{text}".rstrip(), True)
    return ShownAnswer(text or f"The server answered with status {answer.status} and no content.", is_wrong)


def _show_body(answer: RawAnswer, select: Any, redactor: SecretRedactor) -> tuple[str, bool]:
    """Return the text of a body, and whether selection failed."""
    if not answer.body:
        return "", False
    is_json = answer.content_type == "application/json" or answer.content_type.endswith("+json")
    if not is_json and not answer.content_type.startswith(_TEXT_TYPES) and not answer.content_type.endswith("+xml"):
        return f"[{len(answer.body):,} bytes of {redactor.redact(answer.content_type[:100])}, not shown]", False
    text = _decode_text(answer)
    if not is_json and select is None:
        return redactor.redact(text), False
    value = _MISSING if answer.is_cut else _parse_body(text)
    if value is _MISSING:
        if select is None:
            return redactor.redact(text), False
        return "The answer is not JSON, or too large, so that nothing can be selected from it.", True
    value = redactor.redact_value(value)
    if isinstance(select, dict):
        pointers = cast("dict[str, str]", select)
        value = {name: _none_if_missing(select_value(value, pointer)) for name, pointer in pointers.items()}
    elif select is not None:
        value = select_value(value, select)
        if value is _MISSING:
            return f"The answer has nothing at {select}.", True
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)), False


def _decode_text(answer: RawAnswer) -> str:
    try:
        text = answer.body.decode(answer.charset, errors="replace")
    except (LookupError, ValueError):  # unknown, or not an encoding of text
        text = answer.body.decode(errors="replace")
    return text.encode(errors="replace").decode()


def _parse_body(text: str) -> Any:
    try:
        check_json(text.encode(), max_items=_MAX_ITEMS)
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    except (JsonLimitExceeded, ValueError, RecursionError):
        return _MISSING
    return value


def _none_if_missing(value: Any) -> Any:
    return None if value is _MISSING else value


def select_value(value: Any, pointer: str) -> Any:
    """Return the part at a JSON pointer.

    `*` stands for each item of a list.
    """
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
    return _select_part(value, tokens)


def _select_part(value: Any, tokens: list[str]) -> Any:
    for index, step in enumerate(tokens):
        if step == "*" and isinstance(value, list):
            items = cast("list[Any]", value)[:_MAX_SELECTED]
            selected = (_select_part(item, tokens[index + 1 :]) for item in items)
            return [item for item in selected if item is not _MISSING]
        if isinstance(value, dict) and step in value:
            value = cast("dict[str, Any]", value)[step]
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):  # pyright: ignore
            value = cast("list[Any]", value)[int(step[:9])]
        else:
            return _MISSING
    return value


def _cut(text: str, max_bytes: int, is_cut: bool) -> str:
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return f"{text}\n[cut: the answer goes on]" if is_cut else text
    shown = encoded[:max_bytes].decode(errors="ignore")
    return f"{shown}\n[cut: {len(encoded) - max_bytes:,} bytes more{' or longer' if is_cut else ''}]"
