"""What a token costs, in function calls: they do not depend on the machine, and most of its time is theirs.

The whole way is walked: HTTP from the upstream, decoding, events, the journal, SSE, HTTP to the client. The upstream
and the client run in the same process; their own calls are not counted.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks import load
from benchmarks.subjects import post
from benchmarks.upstream import Upstream, prompt
from tests.counting import counted
from tests.stack import Gateway, serve_gateway

PACED_CEILING = 172
"""Calls of Python and C functions for a token that comes alone; 156 when this was written."""
BURST_CEILING = 28
"""The same where many come in one read; 25 when this was written."""
TURN_CEILING = 3_800
"""The same for all of a turn but its tokens, without tools; 3,562 when this was written."""
TURNS = 8


@dataclass
class FixedUpstream:
    base_url: str


@pytest.fixture
async def fast_gateway(database_url: str, tools_url: str) -> AsyncGenerator[Gateway]:
    """A whole gateway over an upstream whose streams are fixed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream: Any = FixedUpstream(f"http://127.0.0.1:{port}")
    async with server, serve_gateway(database_url, upstream, tools_url) as gateway:
        yield gateway


async def calls_for(gateway: Gateway, tokens: int, delay_ms: int) -> Counter[tuple[str, str]]:
    """The gateway's calls for one turn of so many tokens."""
    body = {"messages": [{"role": "user", "content": prompt(tokens, delay_ms)}], "tools": []}
    port = int(gateway.base_url.rsplit(":", 1)[1])
    with counted() as calls:
        figures = await load.put(port, post("/api/v1/chat/stream", body, {}), tokens=tokens, connections=1)
    assert not figures.errors
    return Counter({key: number for key, number in calls.items() if "/benchmarks/" not in key[0]})


def reads(calls: Counter[tuple[str, str]]) -> int:
    return sum(number for (_, name), number in calls.items() if name == "ChunkReader.feed_bytes")


async def fewest_calls_for(gateway: Gateway, tokens: int, delay_ms: int) -> Counter[tuple[str, str]]:
    """Those of the cheapest of several turns: a statement's first use and what else the gateway does meanwhile add."""
    return min([await calls_for(gateway, tokens, delay_ms) for _ in range(TURNS)], key=Counter.total)


async def test_token_that_comes_alone_takes_few_calls(fast_gateway: Gateway) -> None:
    """A busy machine brings some together: of those that one read brings, all but the first cost what many do."""
    short, long = [await fewest_calls_for(fast_gateway, tokens, 5) for tokens in (10, 60)]
    alone = reads(long) - reads(short)
    assert long.total() - short.total() <= alone * PACED_CEILING + (50 - alone) * BURST_CEILING


async def test_token_that_comes_with_many_takes_fewer(fast_gateway: Gateway) -> None:
    short, long = [await fewest_calls_for(fast_gateway, tokens, 0) for tokens in (50, 250)]
    assert (long.total() - short.total()) / 200 <= BURST_CEILING


async def test_turn_of_one_token_takes_few_calls(fast_gateway: Gateway) -> None:
    assert (await fewest_calls_for(fast_gateway, 1, 0)).total() <= TURN_CEILING


async def test_turn_leaves_nothing_to_the_garbage_collector(fast_gateway: Gateway) -> None:
    """What it finds it looks for while every stream stands still."""
    await calls_for(fast_gateway, 10, 0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            await calls_for(fast_gateway, 5, 0)
        assert gc.collect() < 2 * 30  # less than any cycle of a turn's own makes; what runs beside may leave one
    finally:
        gc.enable()
