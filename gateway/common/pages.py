"""Pages of rows that are bounded in number and bytes."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

MAX_PAGE_BYTES = 1024 * 1024
"""Bytes of rows after which a page ends.

A page has at least one row.
"""
PIECE_BYTES = 64 * 1024
"""Bytes of a response that are written at once."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Rows of a page; `has_more` if others may follow."""

    items: list[T]
    has_more: bool


def split_bytes(data: bytes | bytearray) -> Iterator[bytes]:
    """Split data into pieces of at most `PIECE_BYTES`."""
    for start in range(0, len(data), PIECE_BYTES):
        yield bytes(data[start : start + PIECE_BYTES])
