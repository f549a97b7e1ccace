"""Compressed bodies that are thousands of times larger afterwards."""

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import cache

from aiohttp import web

from tests.tools_server.conftest import serve_web

BOMB_MIB = 256
MAX_PEAK_MIB = 64
"""Memory that reading a bomb may take, a quarter of its size."""


@cache
def make_bomb(encoding: str, prefix: bytes = b"") -> bytes:
    """A body of 256 MiB in a few hundred kilobytes."""
    match encoding:
        case "gzip, gzip":
            return gzip.compress(make_bomb("gzip", prefix))
        case "gzip":
            compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        case _:
            compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [compressor.compress(prefix)]
    parts += [compressor.compress(b" " * 1024 * 1024) for _ in range(BOMB_MIB)]
    return b"".join([*parts, compressor.flush()])


@asynccontextmanager
async def serve_bomb(
    encoding: str, *, status: int = 200, content_type: str = "application/json", prefix: bytes = b""
) -> AsyncGenerator[str]:
    """Answer every request with a bomb."""
    body = make_bomb(encoding, prefix)
    headers = {"Content-Encoding": encoding, "Content-Type": content_type}

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    async with serve_web(answer) as address:
        yield address


@contextmanager
def limit_memory() -> Generator[None]:
    """Fail if the block's allocations had a peak of more than `MAX_PEAK_MIB`."""
    tracemalloc.start(1)
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_PEAK_MIB * 1024 * 1024, f"{peak / 1024 / 1024:.0f} MiB"
