"""Pydantic's validation errors, in the words of the API."""

from collections.abc import Mapping, Sequence
from typing import Any

_UNKNOWN_FIELD = "extra_forbidden"
_VALIDATOR_ERRORS = ("value_error", "unknown_fields")


def describe_problem(problem: Mapping[str, Any], location: Sequence[int | str]) -> tuple[str, str]:
    """Return the path of the invalid field, and the reason.

    The path is "" for the whole value. A validator of several fields raises `ValueError("field: reason")`; that field,
    relative to `location`, is part of the path.
    """
    path = ".".join(map(str, location))
    if problem["type"] == _UNKNOWN_FIELD:
        return path, "unknown field"
    reason = str(problem["msg"])
    if problem["type"] not in _VALIDATOR_ERRORS:
        return path, reason
    reason = reason.removeprefix("Value error, ")
    field, separator, field_reason = reason.partition(": ")
    if separator and " " not in field:
        return ".".join(filter(None, (path, field))), field_reason
    return path, reason
