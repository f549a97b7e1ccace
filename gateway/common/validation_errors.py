"""Pydantic's validation errors, in the words of the API."""

from collections.abc import Mapping, Sequence
from typing import Any

_UNKNOWN_FIELD = "extra_forbidden"
_MISSING_TAG = "union_tag_not_found"
_QUOTE = "'"
_VALIDATOR_ERRORS = ("value_error", "unknown_fields")


def list_causes(
    problems: Sequence[Mapping[str, Any]], locations: Sequence[Sequence[int | str]]
) -> list[tuple[Mapping[str, Any], Sequence[int | str]]]:
    """List the problems with their locations.

    Those of a union's other members are left out. A value of the wrong type for one member is the cause only if no
    other member fits its type.
    """
    pairs = list(zip(problems, locations, strict=True))
    return [
        (problem, location)
        for problem, location in pairs
        if not (
            _is_wrong_type(problem)
            and any(
                other[: len(location)] == location and (len(other) > len(location) or not _is_wrong_type(other_problem))
                for other_problem, other in pairs
            )
        )
    ]


def _is_wrong_type(problem: Mapping[str, Any]) -> bool:
    return problem["type"].endswith("_type") or problem["type"] == "literal_error"


def remove_tags(location: Sequence[int | str], body: Any) -> list[int | str]:
    """Leave the tags of discriminated unions out of a location.

    A tag is no field of the body, and the name of one follows.
    """
    parts: list[int | str] = []
    for number, part in enumerate(location):
        following = location[number + 1 :]
        is_before_name = bool(following) and isinstance(following[0], str)
        if isinstance(body, dict) and part not in body and is_before_name:
            continue
        parts.append(part)
        body = _get_member(body, part)
    return parts


def _get_member(body: Any, part: int | str) -> Any:
    try:
        return body[part]
    except (TypeError, KeyError, IndexError):
        return None


def describe_problem(problem: Mapping[str, Any], location: Sequence[int | str]) -> tuple[str, str]:
    """Return the path of the invalid field, and the reason.

    The path is "" for the whole value. A validator of several fields raises `ValueError("field: reason")`; that field,
    relative to `location`, is part of the path.
    """
    path = ".".join(map(str, location))
    if problem["type"] == _UNKNOWN_FIELD:
        return path, "unknown field"
    if problem["type"] == _MISSING_TAG:
        return f"{path}.{problem['ctx']['discriminator'].strip(_QUOTE)}", "Field required"
    reason = str(problem["msg"])
    if problem["type"] not in _VALIDATOR_ERRORS:
        return path, reason
    reason = reason.removeprefix("Value error, ")
    field, separator, field_reason = reason.partition(": ")
    if separator and " " not in field:
        return ".".join(filter(None, (path, field))), field_reason
    return path, reason
