"""Regular expressions of peers, matched in linear time.

The engine is that of pydantic-core, which needs no backtracking.
"""

import re
import threading

from cachetools import LRUCache
from pydantic_core import SchemaError as UnsupportedPattern
from pydantic_core import SchemaValidator, core_schema

_MAX_PATTERN_SIZE = 12_800
_MAX_CACHED_SIZE = 200_000
_UNICODE_CLASS_SIZE = 100
_UNICODE_CLASS = re.compile(r"\\[wWpP]")
_TOKEN = re.compile(r"(\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|.)(?:\{(\d+)(?:,(\d*))?\})?", re.DOTALL)
"""A class, escape or character, and the bounds of its repetition."""


class LinearPattern:
    """A compiled pattern."""

    def __init__(self, pattern: str) -> None:
        """Raises:
        ValueError: the pattern is too large, or needs backtracking.
        """
        self.size = measure_pattern(pattern)
        if self.size > _MAX_PATTERN_SIZE:
            raise ValueError("the pattern is too large")
        try:
            self._validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
        except UnsupportedPattern:
            raise ValueError("the pattern needs backtracking") from None

    def is_found_in(self, text: str) -> bool:
        """Return whether a part of the text matches."""
        return self._validator.isinstance_python(text)


def measure_pattern(pattern: str) -> int:
    """Estimate the size of a compiled pattern.

    One unit takes 400 bytes, and 3 microseconds to compile. Counted repetitions are compiled as often as they count,
    and classes of Unicode letters are large.
    """
    size, factor = 1, 1
    for token in _TOKEN.finditer(pattern):
        digits = token[3] or token[2]
        count = 1 if digits is None else int(digits) if len(digits) < 6 else _MAX_PATTERN_SIZE
        if token[1] == ")":
            factor = min(factor * max(count, 1), _MAX_PATTERN_SIZE)
        else:
            size += count * (_UNICODE_CLASS_SIZE if _UNICODE_CLASS.search(token[1]) else 1)
    return size * factor


def estimate_compilation(pattern: str) -> int:
    """Estimate the work to compile a pattern, in operations."""
    size = measure_pattern(pattern)
    return len(pattern) // 2 + (size if size <= _MAX_PATTERN_SIZE else 0)


class _PatternCache:
    """Compiled patterns of a bounded total size, for all threads.

    The value is None for an unsupported pattern.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._patterns: LRUCache[str, LinearPattern | None] = LRUCache(
            _MAX_CACHED_SIZE, getsizeof=lambda pattern: _UNICODE_CLASS_SIZE + (pattern.size if pattern else 0)
        )

    def get_or_compile(self, pattern: str) -> LinearPattern | None:
        with self._lock:
            if pattern in self._patterns:
                return self._patterns[pattern]
        try:
            compiled = LinearPattern(pattern)
        except ValueError:
            compiled = None
        with self._lock:
            self._patterns[pattern] = compiled
        return compiled


compile_pattern = _PatternCache().get_or_compile
"""Compile a pattern, unless it is in the cache.

The result is None if it is not supported.
"""
