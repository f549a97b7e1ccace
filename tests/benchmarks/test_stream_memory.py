"""Memory of a live stream, in bytes that Python allocates.

Its client and the model's server run in the same process and count as well.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.subjects import build_post_request
from benchmarks.upstream import TOKEN_MARK, UpstreamProtocol, build_prompt
from tests.benchmarks.test_token_cost import FixedUpstream
from tests.stack import serve_gateway

CEILING_BYTES = 45_000
"""Maximum bytes of a stream that has one token.

Measured: 40,000 with Python 3.11, and 49,500 when each event had a queue of waiters.
"""
STREAMS = 16
BATCHES = 5
TIMEOUT_SECONDS = 60.0


@asynccontextmanager
async def open_streams(port: int) -> AsyncGenerator[None]:
    """Open streams at once; they stay open after their first token."""
    body = {"messages": [{"role": "user", "content": build_prompt(2, 3_600_000)}], "tools": []}
    writers: list[asyncio.StreamWriter] = []

    async def open_stream() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(build_post_request("/api/v1/chat/stream", body, {}))
        await reader.readuntil(TOKEN_MARK)

    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(open_stream())
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


@contextmanager
def trace_memory() -> Generator[None]:
    """Trace what is allocated, without what the measurement of coverage allocates."""
    trace = sys.gettrace()
    sys.settrace(None)
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        sys.settrace(trace)


def measure_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.faults
async def test_live_stream_takes_little_memory(database_url: str, tools_url: str) -> None:
    """Take the least growth: what streams share grows at times."""
    server = await asyncio.get_running_loop().create_server(UpstreamProtocol, "127.0.0.1", 0)
    upstream: Any = FixedUpstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    sizes: list[int] = []
    async with server, serve_gateway(database_url, upstream, tools_url) as gateway, AsyncExitStack() as batches:
        port = int(gateway.base_url.rsplit(":", 1)[1])
        with trace_memory():
            for _ in range(BATCHES):
                await batches.enter_async_context(open_streams(port))
                sizes.append(measure_bytes())
    least = min(after - before for before, after in pairwise(sizes)) / STREAMS
    assert least <= CEILING_BYTES, f"{least:,.0f} bytes a stream"
