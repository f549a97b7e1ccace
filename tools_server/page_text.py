"""Extracts the text of HTML pages; also the process that does so.

`python -m tools_server.page_text` reads pages from standard input and writes their texts to standard output until the
input ends. A message is its length in four bytes, and JSON.
"""

import json
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, Protocol, cast

_MAX_TITLE_LENGTH = 300
MAX_TEXT_LENGTH = 100_000
LENGTH = struct.Struct(">I")
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_MAX_MEMORY_BYTES = 2 * 1024**3
_MAX_CPU_SECONDS = 120


class _HtmlTree(Protocol):
    """The part of lxml, which has no types, that this module uses."""

    def findtext(self, path: str) -> str | None: ...


def extract_text(html: str) -> tuple[str | None, str]:
    """Extract title and main text.

    All of the text is returned if no main text is recognized.
    """
    import trafilatura

    tree = trafilatura.load_html(f"<html>{html}</html>")
    if tree is None:
        return None, ""
    title = " ".join((cast(_HtmlTree, tree).findtext(".//title") or "").split())
    all_text = trafilatura.html2txt(tree)
    return title[:_MAX_TITLE_LENGTH] or None, trafilatura.extract(tree, include_tables=True) or all_text


def read_message(stream: BinaryIO) -> object:
    """Read a message.

    Raises:
        EOFError: the stream has ended.
        ValueError: it is not JSON, or too long.
    """
    (length,) = LENGTH.unpack(_read_exactly(stream, LENGTH.size))
    if length > _MAX_MESSAGE_BYTES:
        raise ValueError("the message is too long")
    return json.loads(_read_exactly(stream, length))


def write_message(stream: BinaryIO, message: object) -> None:
    """Write a message."""
    data = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def _read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _list_pages(stream: BinaryIO) -> Iterator[str]:
    with suppress(EOFError):
        while True:
            yield str(read_message(stream))


def _limit_resources() -> None:
    """Limit memory and processor time of this process.

    A page that needs more ends it, and the next page starts another one.
    """
    limits = ((resource.RLIMIT_AS, _MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, _MAX_CPU_SECONDS))
    for kind, limit in limits:
        with suppress(ValueError, OSError):  # not every system has both limits
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def main() -> None:
    """Extract the texts of the pages from standard input."""
    _limit_resources()
    for page in _list_pages(sys.stdin.buffer):
        title, text = extract_text(page)
        write_message(sys.stdout.buffer, [title, text[:MAX_TEXT_LENGTH]])


if __name__ == "__main__":
    main()
