"""Counts function calls and instructions, measures of work independent of the machine."""

import gc
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

    with _without_garbage_collection():
        sys.setprofile(count_call)
        try:
            yield calls
        finally:
            sys.setprofile(None)


@contextmanager
def count_instructions(*folders: str) -> Generator[Counter[str]]:
    """Count the executed instructions of the functions in these folders, by file.

    Counts those that this thread calls from now on. It is slow: a loop in C counts as one instruction.
    """
    instructions: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "call":
            if not any(folder in frame.f_code.co_filename for folder in folders):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions[frame.f_code.co_filename] += event == "opcode"
        return count

    with _without_garbage_collection():
        sys.settrace(count)
        try:
            yield instructions
        finally:
            sys.settrace(None)


@contextmanager
def _without_garbage_collection() -> Generator[None]:
    """Collect no garbage in the block.

    A collection runs finalizers of whatever other tests have left, and its callbacks, which would be counted.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
