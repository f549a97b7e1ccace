"""Validation against untrusted JSON schemas of clients and MCP servers.

It needs no network and takes bounded time. Importing this module changes jsonschema in the whole process, because the
MCP SDK validates with it too. See docs/adr/0018.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from jsonschema import (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    _keywords,  # pyright: ignore[reportPrivateUsage]
    _legacy_keywords,  # pyright: ignore[reportPrivateUsage]
    _utils,  # pyright: ignore[reportPrivateUsage]
)
from jsonschema.exceptions import (
    best_match,  # pyright: ignore[reportUnknownVariableType]
)
from pydantic_core import SchemaError as UnsupportedPattern
from pydantic_core import SchemaValidator, core_schema
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

_KeywordCheck = Callable[[object, object, object, object], "Iterable[ValidationError] | None"]
"""jsonschema's function for a keyword: (validator, value of the keyword, instance, schema)."""

MAX_DEPTH = 100
_MAX_REFERENCES = 10_000
_remaining_references: ContextVar[int | None] = ContextVar("remaining_references", default=None)
_DRAFTS = (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
"""All drafts of JSON Schema.

A part of a schema may declare another draft than the whole.
"""


def exceeds_depth(value: object) -> bool:
    """Return whether objects and arrays are nested more than `MAX_DEPTH` deep.

    Recursive functions cannot process such a value.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [member for item in level for member in _list_members(item)]
        if not level:
            return False
    return True


def _list_members(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast(dict[object, object], value).values()
    return cast(list[object], value) if isinstance(value, list) else ()


class SchemaNotCheckable(Exception):
    """The schema cannot be checked.

    It has an unresolvable or an endless reference.
    """


def check_schema(schema: object) -> None:
    """Check that a schema is valid.

    Raises:
        jsonschema.SchemaError: it is not valid.
        SchemaNotCheckable: it is nested too deeply to be checked.
    """
    if exceeds_depth(schema):
        raise SchemaNotCheckable
    try:
        Draft202012Validator.check_schema(cast(dict[str, object], schema))
    except RecursionError:
        raise SchemaNotCheckable from None


def compile_schema(schema: object) -> "Validator":
    """Create a validator for `iterate_errors` and `best_error`. It fetches no references."""
    return Draft202012Validator(cast(dict[str, object], schema), registry=EMPTY_REGISTRY)


def iterate_errors(validator: "Validator", value: object) -> "Iterator[ValidationError]":
    """Yield the violations of a schema by a value.

    Raises:
        SchemaNotCheckable: a reference cannot be resolved, or too many had to be.
    """
    token = _remaining_references.set(_MAX_REFERENCES)
    try:
        yield from validator.iter_errors(value)  # pyright: ignore[reportArgumentType] - any JSON value
    except (Unresolvable, RecursionError, re.error):
        raise SchemaNotCheckable from None
    finally:
        _remaining_references.reset(token)


def best_error(validator: "Validator", value: object) -> "ValidationError | None":
    """Return the most relevant violation.

    None if the value is valid. Raises like `iterate_errors`.
    """
    find_best = cast("Callable[[Iterable[ValidationError]], ValidationError | None]", best_match)
    return find_best(iterate_errors(validator, value))


def _limit_references(check_reference: _KeywordCheck) -> _KeywordCheck:
    """Limit the number of resolved references.

    A few that each refer to ten others multiply to any number of checks.
    """

    def check_limited(
        validator: object, reference: object, instance: object, schema: object
    ) -> "Iterable[ValidationError] | None":
        if (remaining := _remaining_references.get()) is not None:
            if remaining == 0:
                raise SchemaNotCheckable
            _remaining_references.set(remaining - 1)
        return check_reference(validator, reference, instance, schema)

    return check_limited


def _search_linear(pattern: str, text: str) -> bool:
    """Replace `re.search`. Patterns with lookaround or back-references are not checked."""
    linear_pattern = _compile_linear_pattern(pattern)
    return linear_pattern is None or linear_pattern.isinstance_python(text)


@lru_cache(maxsize=1024)
def _compile_linear_pattern(pattern: str) -> SchemaValidator | None:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except UnsupportedPattern:
        return None


for _module in (_keywords, _legacy_keywords, _utils):
    vars(_module)["re"] = SimpleNamespace(search=_search_linear)
for _draft in _DRAFTS:
    _checks: dict[str, _KeywordCheck] = vars(_draft)["VALIDATORS"]
    for _keyword in {"$ref", "$dynamicRef", "$recursiveRef"} & _checks.keys():
        _checks[_keyword] = _limit_references(_checks[_keyword])
