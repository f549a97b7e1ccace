"""Codes of errors as OpenAI's and Groq's clients know them."""

from collections.abc import Mapping

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
LIMIT_CODES: Mapping[str, str] = {
    "string_too_long": "string_above_max_length",
    "too_long": "array_above_max_length",
}
"""Codes of limits, by the type of the validation error."""


def get_openai_code(code: str) -> str:
    """Return OpenAI's code for an error; without one, the gateway's own."""
    return _CODES.get(code, code)
