"""The Gradio demo as `make demo` runs it, in its own environment."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment
from tests.stack import Gateway, find_free_port

PYTHON = Path(os.environ.get("DEMO_PYTHON", ROOT / ".demo/bin/python"))
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment of `make demo`"),
]
_CLIENT = """
import sys
from gradio_client import Client
client = Client(sys.argv[1], verbose=False)
for prompt in sys.argv[2:]:
    print(client.predict(prompt, api_name="/chat"))
"""


@asynccontextmanager
async def run_demo(gateway_url: str) -> AsyncGenerator[str]:
    environment = clean_environment(GATEWAY_URL=gateway_url, DEMO_PORT=str(find_free_port()))
    process = await asyncio.create_subprocess_exec(
        str(PYTHON), "examples/gradio_chat.py", cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode()
        yield line.split()[-1]
    finally:
        process.terminate()
        await process.wait()


async def chat(url: str, *prompts: str) -> list[str]:
    """Send prompts in one session, and return what is shown after each."""
    process = await asyncio.create_subprocess_exec(
        str(PYTHON), "-c", _CLIENT, url, *prompts, env=clean_environment(), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().splitlines()


async def test_demo_shows_tool_calls_and_sends_all_messages(gateway: Gateway) -> None:
    async with run_demo(gateway.base_url) as url:
        first, second = await chat(url, "What is 23*19?", "And what is 5*9?")
    assert "'title': 'Tool calculator', 'status': 'done'" in first
    assert "23*19 = 437" in first
    assert "5*9 = 45" in second
    messages = [
        (message["role"], message["content"])
        for message in list(gateway.simulator.requests)[-2]["messages"]
        if message["role"] != "system"
    ]
    assert [role for role, _ in messages] == ["user", "assistant", "user"]
    assert "437" in messages[1][1]


async def test_demo_tells_that_the_gateway_does_not_answer() -> None:
    async with run_demo(f"http://127.0.0.1:{find_free_port()}") as url:
        [shown] = await chat(url, "Hello")
    assert "does not answer" in shown
