"""Tests of Ctrl-C at `agent-gateway up`."""

import asyncio
import os
import re
import signal
import time

import pytest

from tests.e2e.running_stack import run_stack
from tests.e2e.test_up import create_directory

pytestmark = pytest.mark.faults
GRACE_SECONDS = 3
MARGIN_SECONDS = 20.0
"""Time of a loaded machine for what takes a moment on an idle one."""


async def test_interrupt_says_what_it_waits_for_and_ends_in_time() -> None:
    with create_directory() as directory:
        async with (
            run_stack(directory, SHUTDOWN_GRACE_SECONDS=str(GRACE_SECONDS)) as stack,
            stack.stream("count to 5000") as stream,
        ):
            await stream.read_until("text.delta")
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
            stack.stream("count to 5000") as stream,
        ):
            await stream.read_until("text.delta")
            os.killpg(stack.process.pid, signal.SIGINT)
            await stream.read_until("stream.closing")
            os.killpg(stack.process.pid, signal.SIGINT)
            async with asyncio.timeout(MARGIN_SECONDS):
                await stack.wait_for_exit()
            assert stack.find_descendants() == []
