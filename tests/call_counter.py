"""Counts function calls, a measure of work independent of the machine."""

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


@contextmanager
def count_function_calls() -> Generator[Counter[tuple[str, str]]]:
    """Count the calls in this thread by file and function.

    C functions count for their caller's file.
    """
    calls: Counter[tuple[str, str]] = Counter()
    names: dict[CodeType, tuple[str, str]] = {}

    def count_call(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            key = names.get(code) or names.setdefault(code, (code.co_filename, code.co_qualname))
            calls[key] += 1
        elif event == "c_call":
            calls[frame.f_code.co_filename, f"{argument.__name__} (C)"] += 1

    sys.setprofile(count_call)
    try:
        yield calls
    finally:
        sys.setprofile(None)
