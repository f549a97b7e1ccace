"""The console as a process of its own, for tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.e2e.running_stack import START_SECONDS, clean_environment
from tests.eventually import eventually
from tests.requirements import require
from tests.stack import find_free_port

CHROMIUM = shutil.which("chromium")
needs_chromium = require(CHROMIUM is not None, "Chromium (`make debian-packages`)")
PICTURES = Path(os.environ.get("CONSOLE_PICTURES", "build/console"))
"""Screenshots of the last run."""


@asynccontextmanager
async def run_console(gateway_url: str, directory: Path, **settings: str) -> AsyncGenerator[str]:
    """Run the console in `directory`; yield its URL."""
    port = find_free_port()
    environment = clean_environment(
        CONSOLE_PORT=str(port), CONSOLE_GATEWAY_URL=gateway_url, PYTHONPATH=os.getcwd(), **settings
    )
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway_console"], env=environment, cwd=directory, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                assert process.poll() is None, (directory / "output").read_text()
                try:
                    async with session.get(f"{url}/health") as response:
                        return response.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await eventually(answers, timeout_seconds=START_SECONDS)
        yield url
    finally:
        process.terminate()
        process.wait(30)
