"""Validation against untrusted JSON schemas of clients and MCP servers.

It needs no network and takes bounded time: schemas are bounded in size, and each validation has a budget of operations.
Importing this module changes jsonschema in the whole process, because the MCP SDK imports it too. See docs/adr/0018.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import wraps
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from cachetools import LRUCache
from jsonschema import (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    ValidationError,
    _keywords,  # pyright: ignore[reportPrivateUsage]
    _legacy_keywords,  # pyright: ignore[reportPrivateUsage]
    _utils,  # pyright: ignore[reportPrivateUsage]
)
from jsonschema.exceptions import (
    UnknownType,
    best_match,  # pyright: ignore[reportUnknownVariableType]
)
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY

from gateway_runtime.json_schema.patterns import compile_pattern, estimate_compilation
from gateway_runtime.json_schema.rules import MAX_DEPTH, SchemaInvalid, check_keywords, measure_value

T = TypeVar("T")
_KeywordCheck = Callable[[Any, Any, object, Any], "Iterable[ValidationError] | None"]
"""jsonschema's function for a keyword: (validator, value of the keyword, instance, schema)."""

MAX_OPERATIONS = 200_000
"""Operations of a validation in a thread: less than a second."""
INLINE_OPERATIONS = 2_000
"""Operations of a validation in the event loop: a few milliseconds."""
_INLINE_NODES = 500
_REFERENCE_OPERATIONS = 10
_ERROR_OPERATIONS = 10
_MAX_ERROR_LENGTH = 2_000
_MAX_CACHED_NODES = 200_000
_THREAD_TIMEOUT_SECONDS = 10.0
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
_MALFORMED_ERRORS = (
    Unresolvable,
    UnknownType,
    RecursionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""Errors of jsonschema for a malformed part.

A reference may reach a part below an unknown keyword, which was not checked.
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


def _list_members(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return cast(dict[object, object], value).values()
    return cast(list[object], value) if isinstance(value, list) else ()


class SchemaNotCheckable(Exception):
    """A value cannot be checked against a schema.

    The schema has an unresolvable or an endless reference.
    """


class OperationsExceeded(SchemaNotCheckable):
    """A check needs more operations than its budget has."""


class OperationBudget:
    """Operations left to one or more validations.

    An operation is the check of a keyword; what iterates, or makes an error, counts as several.
    """

    __slots__ = ("_patterns", "_sizes", "reference_operations", "remaining", "schema_nodes")

    def __init__(self, operations: int = MAX_OPERATIONS) -> None:
        self.remaining = operations
        self.reference_operations = _REFERENCE_OPERATIONS
        self.schema_nodes = 0
        self._sizes: dict[int, int] = {}
        self._patterns: set[str] = set()

    def spend(self, operations: int) -> None:
        """Raises:
        OperationsExceeded: fewer are left.
        """
        self.remaining -= operations
        if self.remaining < 0:
            raise OperationsExceeded

    def measure_keyword(self, value: object) -> int:
        """Return the number of nodes of a keyword's value, counted once."""
        size = self._sizes.get(id(value))
        if size is None:
            size = self._sizes[id(value)] = _count_nodes(value)
        return size

    def spend_for_pattern(self, pattern: str, text: str) -> None:
        """Count a search, and the compilation of a new pattern."""
        operations = 2 + (len(pattern) + len(text)) // 64
        if pattern not in self._patterns:
            self._patterns.add(pattern)
            operations += estimate_compilation(pattern)
        self.spend(operations)


def _count_nodes(value: object) -> int:
    count, pending = 0, [value]
    while pending:
        count += 1
        pending.extend(_list_members(pending.pop()))
    return count


_active_budget: ContextVar[OperationBudget | None] = ContextVar("active_budget", default=None)


class CompiledSchema:
    """A schema that was checked for its size and form."""

    def __init__(self, schema: object) -> None:
        """Raises:
        SchemaInvalid: it is malformed, too large, or nested too deeply.
        """
        self.schema = schema
        self.nodes = measure_value(schema).nodes
        self._has_ids = check_keywords(schema)
        self._validator: Any = Draft202012Validator(cast("dict[str, object]", schema), registry=EMPTY_REGISTRY)

    def iterate_errors(
        self, value: object, budget: OperationBudget, part: object | None = None
    ) -> Iterator[ValidationError]:
        """Yield the violations of the schema, or of a `part`.

        Raises:
            SchemaNotCheckable: a reference cannot be resolved, or the budget does not suffice.
        """
        validator = self._validator if part is None else self._validator.evolve(schema=part)
        budget.schema_nodes = self.nodes
        budget.reference_operations = _REFERENCE_OPERATIONS + self.nodes * self._has_ids
        token = _active_budget.set(budget)
        try:
            yield from validator.iter_errors(value)
        except _MALFORMED_ERRORS:
            raise SchemaNotCheckable from None
        finally:
            _active_budget.reset(token)

    def find_error(self, value: object, budget: OperationBudget | None = None) -> ValidationError | None:
        """Return the most relevant violation; None if the value is valid.

        Raises like `iterate_errors`.
        """
        find_best = cast("Callable[[Iterable[ValidationError]], ValidationError | None]", best_match)
        return find_best(self.iterate_errors(value, budget or OperationBudget()))


class _CachedSchema:
    """The result of compiling a schema, which it keeps alive."""

    def __init__(self, schema: object) -> None:
        self.schema = schema
        self.compiled: CompiledSchema | None = None
        self.problem: SchemaInvalid | None = None
        try:
            self.compiled = CompiledSchema(schema)
        except SchemaInvalid as error:
            self.problem = error.with_traceback(None)

    @property
    def nodes(self) -> int:
        return self.compiled.nodes if self.compiled is not None else 1_000


_compiled_schemas: LRUCache[int, _CachedSchema] = LRUCache(_MAX_CACHED_NODES, getsizeof=lambda cached: cached.nodes)
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="json schema")


def compile_schema(schema: object) -> CompiledSchema:
    """Compile a schema, the same object only once.

    Call it in the event loop's thread.

    Raises:
        SchemaInvalid: it is malformed, too large, or nested too deeply.
    """
    cached = _compiled_schemas.get(id(schema))
    if cached is None or cached.schema is not schema:
        cached = _compiled_schemas[id(schema)] = _CachedSchema(schema)
    return _get_compiled(cached)


async def compile_schema_off_loop(schema: object) -> CompiledSchema:
    """Compile a schema; a large one in a thread.

    Raises like `compile_schema`.
    """
    cached = _compiled_schemas.get(id(schema))
    if cached is None or cached.schema is not schema:
        if measure_value(schema).nodes <= _INLINE_NODES:
            return compile_schema(schema)
        cached = await run_in_schema_thread(_CachedSchema, schema)
        _compiled_schemas[id(schema)] = cached
    return _get_compiled(cached)


def _get_compiled(cached: _CachedSchema) -> CompiledSchema:
    if cached.compiled is None:
        raise SchemaInvalid(str(cached.problem))
    return cached.compiled


async def find_error_off_loop(compiled: CompiledSchema, value: object) -> ValidationError | None:
    """Return the most relevant violation; an expensive check runs in a thread.

    Raises:
        SchemaNotCheckable: see `CompiledSchema.iterate_errors`.
    """
    try:
        return compiled.find_error(value, OperationBudget(INLINE_OPERATIONS))
    except OperationsExceeded:
        return await run_in_schema_thread(compiled.find_error, value)


async def run_in_schema_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a bounded function in one of two threads.

    Raises:
        SchemaNotCheckable: no thread was free in time.
    """
    try:
        async with asyncio.timeout(_THREAD_TIMEOUT_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)
    except TimeoutError:
        raise SchemaNotCheckable from None


# Changes of jsonschema. Without an active budget they count nothing.


def _count_keyword(keyword: str, check: _KeywordCheck) -> _KeywordCheck:
    """Count the operations of a keyword's check."""
    compares_values = keyword in ("enum", "const")
    is_reference = keyword in ("$ref", "$dynamicRef", "$recursiveRef")

    @wraps(check)
    def check_counted(validator: Any, value: Any, instance: object, schema: Any) -> Iterable[ValidationError] | None:
        if (budget := _active_budget.get()) is not None:
            if is_reference:
                is_pointer = value == "#" or (isinstance(value, str) and value.startswith("#/"))
                budget.spend(budget.reference_operations + (0 if is_pointer else budget.schema_nodes))
            elif compares_values:
                budget.spend(1 + budget.measure_keyword(value) // 8)
            else:
                length, size = len(_list_members(value)), len(_list_members(instance))
                iterations = length * size if keyword == "patternProperties" else length + size
                budget.spend(1 + iterations // 8)
        return check(validator, value, instance, schema)

    return check_counted


def _count_evaluated(find_evaluated: Callable[[Any, Any, Any], Iterable[Any]]) -> Callable[[Any, Any, Any], set[Any]]:
    """Count the steps of a search for evaluated members.

    The search follows references itself. The result is a set, because jsonschema looks up each member in it.
    """

    @wraps(find_evaluated)
    def find_counted(validator: Any, instance: Any, schema: Any) -> set[Any]:
        if (budget := _active_budget.get()) is not None:
            budget.spend(budget.reference_operations + len(_list_members(schema)) + len(instance) // 8)
        return set(find_evaluated(validator, instance, schema))

    return find_counted


def _search_linear(pattern: str, text: str) -> bool:
    """Replace `re.search`. Patterns with lookaround or back-references are not checked."""
    if (budget := _active_budget.get()) is not None:
        budget.spend_for_pattern(pattern, text)
    linear_pattern = compile_pattern(pattern)
    return linear_pattern is None or linear_pattern.is_found_in(text)


def _are_unique(items: list[object]) -> bool:
    """Replace jsonschema's `uniq`, which compares each pair of objects."""
    if (budget := _active_budget.get()) is not None:
        budget.spend(_count_nodes(items) // 2)
    return len({_make_comparable(item) for item in items}) == len(items)


def _make_comparable(value: object) -> object:
    """Return a hashable value that is equal for equal JSON values."""
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, dict):
        members = cast("dict[str, object]", value).items()
        return "object", frozenset((name, _make_comparable(member)) for name, member in members)
    if isinstance(value, list):
        return "array", tuple(map(_make_comparable, cast("list[object]", value)))
    return value


def _limit_error(make_error: Callable[..., None]) -> Callable[..., None]:
    """Count each error, and truncate its message.

    Messages quote values of any length.
    """

    @wraps(make_error)
    def make_limited(error: ValidationError, message: str, *arguments: object, **options: object) -> None:
        if (budget := _active_budget.get()) is not None:
            budget.spend(_ERROR_OPERATIONS + len(message) // 64)
            message = message[:_MAX_ERROR_LENGTH]
        make_error(error, message, *arguments, **options)

    return make_limited


def _change_jsonschema() -> None:
    for module in (_keywords, _legacy_keywords, _utils):
        names = vars(module)
        names["re"] = SimpleNamespace(search=_search_linear)
        for name in ("find_evaluated_item_indexes_by_schema", "find_evaluated_property_keys_by_schema"):
            if name in names:
                names[name] = _count_evaluated(names[name])
        if "uniq" in names:
            names["uniq"] = _are_unique
    for draft in _DRAFTS:
        checks: dict[str, _KeywordCheck] = vars(draft)["VALIDATORS"]
        for keyword, check in checks.items():
            checks[keyword] = _count_keyword(keyword, check)
    ValidationError.__init__ = _limit_error(ValidationError.__init__)


_change_jsonschema()
