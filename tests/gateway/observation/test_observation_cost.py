"""Costs of traces and metrics.

There are none while they are off, and none for a token while they are on.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from benchmarks.upstream import UpstreamProtocol
from tests.benchmarks.test_token_cost import (
    BURST_CEILING,
    FixedUpstream,
    count_fewest_calls,
)
from tests.otlp_receiver import OtlpReceiver
from tests.stack import Gateway, serve_gateway

IMPORTED = """
import sys
import gateway.app, tools_server.server
unwanted = ("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf")
unwanted += ("gateway.observation",)
print([name for name in sys.modules if name.startswith(unwanted)])
"""


@pytest.mark.faults
def test_nothing_is_imported_while_all_is_off() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


async def test_parts_are_the_plain_ones_while_all_is_off(shared_gateway: Gateway) -> None:
    state = shared_gateway.state
    parts = (state.model, state.toolbox, state.questions, state.turn_service)
    assert [type(part).__module__ for part in parts if "observation" in type(part).__module__] == []


@pytest.fixture
async def watched(receiver: OtlpReceiver, database_url: str, tools_url: str) -> AsyncGenerator[Gateway]:
    server = await asyncio.get_running_loop().create_server(UpstreamProtocol, "127.0.0.1", 0)
    upstream: Any = FixedUpstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    options: dict[str, Any] = {"journal_flush_ms": 10_000, "metrics": True}
    async with server, serve_gateway(database_url, upstream, tools_url, **options) as gateway:
        yield gateway


@pytest.mark.faults
async def test_token_in_a_burst_takes_no_more_calls_while_all_is_on(watched: Gateway) -> None:
    short, long = [await count_fewest_calls(watched, tokens, 0) for tokens in (50, 250)]
    assert (long.total() - short.total()) / 200 <= BURST_CEILING
