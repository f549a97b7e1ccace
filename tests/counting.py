"""Calls of functions, as a measure of work that does not depend on the machine."""

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


@contextmanager
def counted() -> Generator[Counter[tuple[str, str]]]:
    """Counts the calls in this thread by file and function, C functions under their caller's file."""
    calls: Counter[tuple[str, str]] = Counter()
    names: dict[CodeType, tuple[str, str]] = {}

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            key = names.get(code) or names.setdefault(code, (code.co_filename, code.co_qualname))
            calls[key] += 1
        elif event == "c_call":
            calls[frame.f_code.co_filename, f"{argument.__name__} (C)"] += 1

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)
