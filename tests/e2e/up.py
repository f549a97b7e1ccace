"""`agent-gateway up` as a user starts it: real processes, in a directory of their own."""

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from gateway.store.database import plain_dsn
from gateway_runtime import embedded_postgres
from tests.eventually import eventually
from tests.stack import Client, free_port

START_SECONDS = 90.0
"""For processes to start: on a loaded machine each imports for ten seconds."""
ROOT = Path(__file__).parent.parent.parent
KEPT_OUT = (
    "PYTHONDONTWRITEBYTECODE",  # or each process compiles the packages anew, for a second
    "JWT_",
    "RATE_LIMIT_",
    "REDIS_",
    "BUDGET_",
    "TRUSTED_",
    "REDACTION_",
    "GROQ_",
    "DATABASE_URL",
    "POSTGRES_",
    "MCP_",
    "API_KEY",
    "TOOLS_",
    "GATEWAY_",
    "LOG_",
    "DEBUG",
    "AGENT_",
    "WEB_CONCURRENCY",
)


def clean_environment(**settings: str) -> dict[str, str]:
    """The machine's environment without what would configure the gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)} | settings


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *arguments]


@dataclass
class Up(Client):
    """A running stack."""

    base_url: str
    session: aiohttp.ClientSession
    process: subprocess.Popen[bytes]
    data_dir: Path
    tools_port: int
    environment: dict[str, str]
    output: Path

    @property
    def tools_url(self) -> str:
        return f"http://127.0.0.1:{self.tools_port}/mcp"

    def child(self, module: str) -> int:
        """The process id of a child, by the module that it runs."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and module.encode() in words:
                return int(entry.name)
        raise AssertionError(f"no child runs {module}")

    def descendants(self) -> list[int]:
        """Every process of the stack, told by the environment that all of them have."""
        mark = f"GATEWAY_DATA_DIR={self.data_dir}".encode()
        found: list[int] = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                postgres = str(self.data_dir / "postgres").encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if (marked or postgres) and int(entry.name) != self.process.pid:
                found.append(int(entry.name))
        return found

    async def until_gone(self) -> int:
        """The exit code, once the process has ended."""
        await eventually(lambda: self.process.poll() is not None)
        assert self.process.returncode is not None
        return self.process.returncode

    async def rows(self, query: str) -> list[Any]:
        """What the stack's own database says; started again for this if the stack is down."""
        server = embedded_postgres.start_or_attach(self.data_dir)
        try:
            connection = await asyncpg.connect(plain_dsn(server.build_url()))
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()
        finally:
            server.stop_if_started_here()

    async def until_ready(self) -> None:
        async def ready() -> bool:
            return (await self.get("/ready")).body["status"] == "ready"

        await eventually(ready)


@asynccontextmanager
async def running_up(directory: Path, *, trusted: ssl.SSLContext | None = None, **settings: str) -> AsyncGenerator[Up]:
    """Start the stack in `directory`, wait until it says that it is ready; stop it in the end. `trusted`: by https."""
    port, tools_port = free_port(), free_port()
    data_dir = directory / "data"
    environment = clean_environment(
        GATEWAY_PORT=str(port), TOOLS_SERVER_PORT=str(tools_port), GATEWAY_DATA_DIR=str(data_dir), **settings
    )
    output = directory / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            command("up"), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:

        def announced() -> bool:
            assert process.poll() is None, output.read_text()
            return b"\nTry:" in output.read_bytes()

        await eventually(announced, timeout_seconds=START_SECONDS)
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(ssl=trusted or True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            yield Up(
                f"{'https' if trusted else 'http'}://127.0.0.1:{port}",
                session,
                process,
                data_dir,
                tools_port,
                environment,
                output,
            )
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
