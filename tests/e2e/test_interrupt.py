"""Tests of Ctrl-C at `agent-gateway up`."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.e2e.running_stack import START_SECONDS, RunningStack, run_stack
from tests.e2e.test_up import create_directory
from tests.eventually import eventually
from tests.stack import Stream

pytestmark = pytest.mark.faults
GRACE_SECONDS = 3
MARGIN_SECONDS = 20.0
"""Seconds on a loaded machine for what takes a moment."""


@asynccontextmanager
async def start_stream(stack: RunningStack) -> AsyncGenerator[Stream]:
    """Start a long turn; yield its stream after the first text.

    On a loaded machine the stack is announced before it answers.
    """

    async def answers() -> bool:
        try:
            return (await stack.get("/health")).status == 200
        except aiohttp.ClientConnectionError:
            return False

    await eventually(answers, timeout_seconds=START_SECONDS)
    async with stack.stream("count to 5000") as stream:
        await stream.read_until("text.delta")
        yield stream


async def test_interrupt_says_what_it_waits_for_and_ends_in_time() -> None:
    with create_directory() as directory:
        async with (
            run_stack(directory, SHUTDOWN_GRACE_SECONDS=str(GRACE_SECONDS)) as stack,
            start_stream(stack) as stream,
        ):
            started_at = time.monotonic()
            os.killpg(stack.process.pid, signal.SIGINT)
            async with asyncio.timeout(GRACE_SECONDS + MARGIN_SECONDS):
                await stream.read_until("stream.closing")
                assert await stack.wait_for_exit() == 0
            stopped_in = time.monotonic() - started_at
            output = stack.output.read_text()
            lines = re.findall(r"^Stopping (.+): at most ([0-9.]+) seconds\.", output, re.MULTILINE)
            assert [names for names, _ in lines] == ["the gateway", "the simulated Groq, the tool server", "Postgres"]
            assert "Ctrl-C again stops everything at once" in output
            assert stopped_in < sum(float(seconds) for _, seconds in lines) + MARGIN_SECONDS
            assert stack.find_descendants() == []


async def test_second_interrupt_ends_at_once() -> None:
    with create_directory() as directory:
        async with (
            run_stack(directory, SHUTDOWN_GRACE_SECONDS="250") as stack,
            start_stream(stack),
        ):
            os.killpg(stack.process.pid, signal.SIGINT)
            await eventually(lambda: "Stopping the gateway: at most 252 seconds" in stack.output.read_text())
            os.killpg(stack.process.pid, signal.SIGINT)
            async with asyncio.timeout(MARGIN_SECONDS):
                await stack.wait_for_exit()
            assert stack.find_descendants() == []
