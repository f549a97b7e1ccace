"""The part of a structured result that its text lacks."""

import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec

_MAX_VALUES = 5_000
_SHORT_LENGTH = 3
_MAX_FLOAT = 1e300
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"\w+")


class _TextIndex:
    """Tells whether a text has a value in any usual form."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: set[str] | None = None
        self._numbers: set[float] | None = None

    def has(self, value: str | float | bool) -> bool:
        """Return whether the text has a value.

        Short texts and numbers must be words of their own.
        """
        if isinstance(value, bool):
            return str(value).lower() in self._get_words()
        if not isinstance(value, str):
            return float(value) in self._get_numbers() if abs(value) < _MAX_FLOAT else str(value) in self._text
        if len(value) > _SHORT_LENGTH:
            return value in self._text or msgspec.json.encode(value)[1:-1].decode() in self._text
        return not value.strip() or re.search(rf"(?<!\w){re.escape(value)}(?!\w)", self._text) is not None

    def _get_words(self) -> set[str]:
        if self._words is None:
            self._words = {word for part in (self._text, self._text.lower()) for word in _WORD.findall(part)}
        return self._words

    def _get_numbers(self) -> set[float]:
        if self._numbers is None:
            self._numbers = {float(number) for number in _NUMBER.findall(self._text)}
        return self._numbers


def select_missing(structured: Any, text: str) -> Any:
    """Select what a model would not read in the text.

    None: the text has all of it.

    Of an object that are the members with a value which the text lacks; another value is selected as a whole.
    """
    if not text.strip():
        return structured
    index = _TextIndex(text)
    if not isinstance(structured, dict):
        return structured if _lacks(structured, index) else None
    members = cast("dict[str, Any]", structured)
    return {name: value for name, value in members.items() if _lacks(value, index)} or None


def _lacks(value: Any, index: _TextIndex) -> bool:
    """Return whether the text lacks a value or is hard to compare."""
    return any(number >= _MAX_VALUES or not index.has(leaf) for number, leaf in enumerate(_iterate_leaves(value)))


def _iterate_leaves(value: Any) -> Iterator[str | float | bool]:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending.extend(cast("dict[str, Any]", part).values())
        elif isinstance(part, list):
            pending.extend(cast("list[Any]", part))
        elif isinstance(part, str | int | float):
            yield part
