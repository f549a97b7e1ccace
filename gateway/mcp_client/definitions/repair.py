"""Removal of members that do not fit the protocol."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from gateway.domain.messages import JsonObject

_MAX_REPAIRS = 50


class Misfit(NamedTuple):
    """The place in a value that does not fit the protocol."""

    path: tuple[int | str, ...]
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message[:1].lower()}{self.message[1:]}"


class Repair(NamedTuple):
    """Problems that were removed; true if the rest can be used."""

    problems: list[str]
    is_usable: bool

    def __bool__(self) -> bool:
        return self.is_usable


def find_misfit(validate: Callable[[], object], prefix: tuple[int | str, ...] = ()) -> Misfit | None:
    """Find the first place that does not fit.

    Its path is without the `prefix`.
    """
    try:
        validate()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Misfit(first["loc"][len(prefix) :], first["msg"])
    return None


def remove_misfits(value: JsonObject, required: tuple[str, ...], find: Callable[[], Misfit | None]) -> Repair:
    """Remove from a value in place what does not fit the protocol.

    It is not usable if a member that is `required` does not fit.
    """
    problems: list[str] = []
    for _ in range(_MAX_REPAIRS):
        misfit = find()
        if misfit is None:
            return Repair(problems, True)
        problems.append(str(misfit))
        path = _find_existing(value, misfit.path)
        if not path or (len(path) == 1 and path[0] in required):
            break
        container: Any = value
        for part in path[:-1]:
            container = container[part]
        del container[path[-1]]
    return Repair(problems[-1:], False)


def _find_existing(value: Any, path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The longest beginning of a path that exists in a value."""
    for depth, part in enumerate(path):
        keys: Any = range(len(cast("list[Any]", value))) if isinstance(value, list) else value
        if not isinstance(value, dict | list) or part not in keys:
            return path[:depth]
        value = cast("Any", value)[part]
    return path
