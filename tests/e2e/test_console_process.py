"""The console beside `agent-gateway up`, alone, and left out."""

import asyncio
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.running_stack import (
    ROOT,
    START_SECONDS,
    RunningStack,
    clean_environment,
    gateway_command,
    run_stack,
)
from tests.eventually import eventually
from tests.stack import find_free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-console-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def wait_until_healthy(url: str) -> None:
    async def answers() -> bool:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(f"{url}/health") as response:
                    return response.status == 200
            except aiohttp.ClientConnectionError:
                return False

    await eventually(answers, timeout_seconds=START_SECONDS)


async def read_home(stack: RunningStack) -> str:
    async with stack.session.get(stack.base_url, headers={"Accept": "text/html"}) as response:
        return await response.text()


async def test_up_starts_the_console_and_the_home_page_links_to_it(directory: Path) -> None:
    port = find_free_port()
    async with run_stack(directory, CONSOLE="on", CONSOLE_PORT=str(port)) as stack:
        await wait_until_healthy(f"http://127.0.0.1:{port}")
        assert f'href="http://127.0.0.1:{port}"' in await read_home(stack)


async def test_console_that_is_off_is_neither_started_nor_linked(directory: Path) -> None:
    async with run_stack(directory, CONSOLE="off") as stack:
        assert "Open the web console" not in await read_home(stack)
        with pytest.raises(AssertionError, match="no child runs"):
            stack.find_child("gateway_console")


async def test_console_runs_alone() -> None:
    port = find_free_port()
    environment = clean_environment(CONSOLE_PORT=str(port), PYTHONPATH=str(ROOT))
    process = await asyncio.create_subprocess_exec(*gateway_command("console"), env=environment)
    try:
        await wait_until_healthy(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        await process.wait()


async def test_gateway_imports_nothing_of_the_console() -> None:
    code = "import sys, gateway.app, gateway.cli.main; print([n for n in sys.modules if 'nicegui' in n])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out.decode().strip()) == (0, "[]")
