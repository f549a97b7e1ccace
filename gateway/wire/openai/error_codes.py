"""Codes of errors as OpenAI's and Groq's clients know them."""

from collections.abc import Mapping
from typing import Any

from gateway.domain import errors

_RATE_LIMIT = "rate_limit_exceeded"
_CODES: Mapping[str, str] = {
    errors.PromptTooLong.code: "context_length_exceeded",
    errors.NotAuthenticated.code: "invalid_api_key",
    errors.BudgetExceeded.code: "insufficient_quota",
    errors.RateLimited.code: _RATE_LIMIT,
    errors.TooManyStreams.code: _RATE_LIMIT,
    errors.ModelRateLimited.code: _RATE_LIMIT,
    errors.UpstreamRateLimited.code: _RATE_LIMIT,
    errors.Overloaded.code: "server_is_overloaded",
    errors.ModelUnavailable.code: "server_is_overloaded",
    errors.GatewayError.code: "server_error",
}
_INVALID_TYPE, _INVALID_VALUE = "invalid_type", "invalid_value"
_PROBLEM_CODES: Mapping[str, str] = {
    "missing": "missing_required_parameter",
    "union_tag_not_found": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unknown_fields": "unknown_parameter",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
    "too_long": "array_above_max_length",
    "too_short": "array_below_min_length",
    "int_from_float": _INVALID_TYPE,
    "string_pattern_mismatch": _INVALID_VALUE,
    "union_tag_invalid": _INVALID_VALUE,
    "literal_error": _INVALID_VALUE,
    "finite_number": _INVALID_VALUE,
    "value_error": _INVALID_VALUE,
    "enum": _INVALID_VALUE,
}
"""Codes by the type of the validation error."""
_EMPTY_CODES = {"too_short": "empty_array", "string_too_short": "empty_string"}
_RANGE_CODES = {
    "less_than": ("lt", "above_max_value"),
    "less_than_equal": ("le", "above_max_value"),
    "greater_than": ("gt", "below_min_value"),
    "greater_than_equal": ("ge", "below_min_value"),
}


def get_openai_code(code: str) -> str:
    """Return OpenAI's code for an error; without one, the gateway's own."""
    return _CODES.get(code, code)


def get_problem_code(problem: Mapping[str, Any]) -> str | None:
    """Return OpenAI's code for a validation error; None without one."""
    kind = str(problem["type"])
    if kind in _RANGE_CODES:
        limit, code = _RANGE_CODES[kind]
        return f"{'decimal' if isinstance(problem['ctx'][limit], float) else 'integer'}_{code}"
    if kind in _EMPTY_CODES and not problem["input"]:
        return _EMPTY_CODES[kind]
    return _PROBLEM_CODES.get(kind, _INVALID_TYPE if kind.endswith(("_type", "_parsing")) else None)
