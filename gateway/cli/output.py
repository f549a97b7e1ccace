"""Output of exports: a private file, a pipe, or a terminal."""

import codecs
import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from gateway.common.sanitize import replace_controls
from gateway_runtime.private_files import create_private


@contextmanager
def open_export(file: Path | None) -> Generator[Callable[[bytes], object]]:
    """Open a new private file, or standard output.

    Yields a function that writes bytes. Pieces may end inside a character. A terminal gets control characters as
    escapes of JSON, which have the same meaning.
    """
    if file is not None:
        with create_private(file) as output:
            yield output.write
    elif sys.stdout.isatty():
        yield _TerminalOutput().write
    else:
        yield sys.stdout.buffer.write


class _TerminalOutput:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        sys.stdout.write(replace_controls(text, lambda control: json.dumps(control)[1:-1]))
