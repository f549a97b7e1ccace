"""Validation against untrusted JSON schemas of clients and MCP servers: without network access, in bounded time.

Importing this module makes jsonschema search patterns in linear time in the whole process, because the MCP SDK
validates with it, too: Python's own engine can be made to run for days on forty characters.
"""

import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

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
from pydantic_core import SchemaError as NotLinear
from pydantic_core import SchemaValidator, core_schema
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY

_MAX_REFERENCES = 10_000
_references_left: ContextVar[int | None] = ContextVar("references_left", default=None)
# A schema may name another draft for a part of itself.
_DRAFTS: Any = (
    Draft3Validator, Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator,
)  # fmt: skip


MAX_DEPTH = 100


def exceeds_depth(value: Any) -> bool:
    """Whether objects and arrays are nested more than `MAX_DEPTH` deep, which recursive functions cannot process."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for item in level if isinstance(item, dict | list) for part in _list_members(item)]
        if not level:
            return False
    return True


def _list_members(value: Any) -> Iterable[Any]:
    return cast(Iterable[Any], value.values() if isinstance(value, dict) else value)


class SchemaNotCheckable(Exception):
    """The schema has an unresolvable or an endless reference, so it cannot be checked."""


def check_schema(schema: Any) -> None:
    """Check that a schema is valid.

    Raises:
        jsonschema.SchemaError: it is not valid.
        SchemaNotCheckable: it is nested too deeply to be checked.
    """
    if exceeds_depth(schema):
        raise SchemaNotCheckable
    try:
        Draft202012Validator.check_schema(schema)
    except RecursionError:
        raise SchemaNotCheckable from None


def compile_schema(schema: Any) -> Any:
    """A validator for `iterate_errors` and `best_error`."""
    return Draft202012Validator(schema, registry=EMPTY_REGISTRY)  # which fetches nothing


def iterate_errors(validator: Any, value: Any) -> Iterator[Any]:
    """The violations of a schema by a value.

    Raises:
        SchemaNotCheckable: a reference cannot be resolved, or too many had to be.
    """
    token = _references_left.set(_MAX_REFERENCES)
    try:
        yield from validator.iter_errors(value)
    except (Unresolvable, RecursionError, re.error):
        raise SchemaNotCheckable from None
    finally:
        _references_left.reset(token)


def best_error(validator: Any, value: Any) -> Any:
    """The most relevant violation; None if the value is valid. Raises like `iterate_errors`."""
    return cast(Any, best_match)(iterate_errors(validator, value))


def _limit_references(original: Any) -> Any:
    """Count resolved references: a few that each refer to ten others multiply to any number of checks."""

    def counted(validator: Any, reference: Any, instance: Any, schema: Any) -> Any:
        if (left := _references_left.get()) is not None:
            if left == 0:
                raise SchemaNotCheckable
            _references_left.set(left - 1)
        return original(validator, reference, instance, schema)

    return counted


def _search_linear(pattern: str, text: str) -> bool:
    """Replacement of `re.search`. Patterns with lookaround or back-references are not checked."""
    linear = _compile_linear_pattern(pattern)
    return linear is None or linear.isinstance_python(text)


@lru_cache(maxsize=1024)
def _compile_linear_pattern(pattern: str) -> SchemaValidator | None:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except NotLinear:
        return None


for _module in cast("tuple[Any, ...]", (_keywords, _legacy_keywords, _utils)):
    _module.re = SimpleNamespace(search=_search_linear)
for _draft in _DRAFTS:
    for _keyword in {"$ref", "$dynamicRef", "$recursiveRef"} & _draft.VALIDATORS.keys():
        _draft.VALIDATORS[_keyword] = _limit_references(_draft.VALIDATORS[_keyword])
