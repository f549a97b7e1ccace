"""JSON responses with lists of any length, sent in bounded pieces."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gateway.common.pages import PIECE_BYTES, split_bytes

_MAX_PLAIN_BYTES = 256 * 1024
_JSON = "application/json"

T = TypeVar("T")


async def build_list_response(
    lists: Mapping[str, AsyncIterable[object]],
    *,
    head: bytes = b"{}",
    tail: Callable[[], bytes] = lambda: b"{}",
    headers: Mapping[str, str] | None = None,
    media_type: str = _JSON,
) -> Response:
    """Build a JSON object of fields and lists.

    The fields of `head` are first, those of `tail` last.
    Items are read as the client reads them, and `tail` is called after the last. A small object is a plain response. Of
    a large one, a piece and the items of a page are in memory.

    Raises:
        GatewayError: the first items cannot be read. A later failure breaks the response off.
    """
    return await build_response(_write_object(head, lists, tail), headers=headers, media_type=media_type)


async def build_response(
    chunks: AsyncIterable[bytes], *, headers: Mapping[str, str] | None = None, media_type: str
) -> Response:
    """Build a response that is sent in pieces, unless it is small.

    Raises:
        GatewayError: the first chunks cannot be read.
    """
    pieces = _join_pieces(chunks)
    first = bytearray()
    async for piece in pieces:
        first += piece
        if len(first) > _MAX_PLAIN_BYTES:
            return StreamingResponse(_chain(first, pieces), headers=headers, media_type=media_type)
    return Response(bytes(first), headers=headers, media_type=media_type)


async def iterate(items: Iterable[T]) -> AsyncIterator[T]:
    """Iterate over items in memory."""
    for item in items:
        yield item


async def _chain(first: bytearray, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in split_bytes(first):
        yield piece
    first.clear()
    async for piece in rest:
        yield piece


async def _join_pieces(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks and split large ones.

    Other tasks run after each piece.
    """
    joined = bytearray()
    async for chunk in chunks:
        joined += chunk
        if len(joined) < PIECE_BYTES:
            continue
        pieces, joined = joined, bytearray()
        for piece in split_bytes(pieces):
            yield piece
            await asyncio.sleep(0)
    yield bytes(joined)


async def _write_object(
    head: bytes, lists: Mapping[str, AsyncIterable[object]], tail: Callable[[], bytes]
) -> AsyncIterator[bytes]:
    yield head[:-1]
    separator = b"," if len(head) > len(b"{}") else b""
    for name, items in lists.items():
        yield separator + msgspec.json.encode(name) + b":["
        separator = b""
        async for item in items:
            yield separator + _encode(item)
            separator = b","
        yield b"]"
        separator = b","
    fields = tail()[1:]
    yield fields if fields == b"}" else separator + fields


def _encode(value: object) -> bytes:
    return value.model_dump_json().encode() if isinstance(value, BaseModel) else msgspec.json.encode(value)
