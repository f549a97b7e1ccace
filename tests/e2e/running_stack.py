"""`agent-gateway up` as a user starts it, in its own directory."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import asyncpg

from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn
from tests.eventually import eventually
from tests.stack import Client, find_free_port

START_SECONDS = 90.0
"""Timeout of process starts, whose imports are slow on a loaded machine."""
ROOT = Path(__file__).parent.parent.parent
EXCLUDED_PREFIXES = (
    "PYTHONDONTWRITEBYTECODE",  # else each process would compile the packages again
    "JWT_",
    "RATE_LIMIT_",
    "REDIS_",
    "BUDGET_",
    "TRUSTED_",
    "REDACTION_",
    "CORS_",
    "GROQ_",
    "DATABASE_URL",
    "POSTGRES_",
    "MCP_",
    "API_KEY",
    "TOOLS_",
    "GATEWAY_",
    "LOG_",
    "DEBUG",
    "CONSOLE",
    "AGENT_",
    "WEB_CONCURRENCY",
)


def clean_environment(**settings: str) -> dict[str, str]:
    """Return the environment without gateway variables, plus the settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(EXCLUDED_PREFIXES)} | {
        "CONSOLE": "off",
        **settings,
    }


def gateway_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *arguments]


@dataclass
class RunningStack(Client):
    """A running stack and an HTTP client of its gateway."""

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

    def find_child(self, module: str) -> int:
        """Return the process id of the child that runs a module."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and module.encode() in words:
                return int(entry.name)
        raise AssertionError(f"no child runs {module}")

    def find_descendants(self) -> list[int]:
        """Return the ids of all processes of the stack.

        Each child gets the stack's `LOGNAME`, except Postgres.
        """
        assignment = f"LOGNAME={self.environment['LOGNAME']}".encode()
        pids: list[int] = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                has_name = assignment in (entry / "environ").read_bytes().split(b"\0")
                is_postgres = str(self.data_dir / "postgres").encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if (has_name or is_postgres) and int(entry.name) != self.process.pid:
                pids.append(int(entry.name))
        return pids

    async def wait_for_exit(self) -> int:
        """Wait for the process to end and return its exit code."""
        await eventually(lambda: self.process.poll() is not None)
        assert self.process.returncode is not None
        return self.process.returncode

    async def query(self, query: str) -> list[Any]:
        """Query the stack's own database, and start it if needed."""
        server = embedded_postgres.start_or_attach(self.data_dir)
        try:
            connection = await asyncpg.connect(plain_dsn(server.build_url()))
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()
        finally:
            server.stop_if_started_here()

    async def wait_until_ready(self) -> None:
        await wait_until_ready(self)


async def wait_until_ready(gateway: Client) -> None:
    """Wait until a gateway has its model and all MCP servers.

    On a loaded machine it serves, and is announced, before that.
    """

    async def is_ready() -> bool:
        try:
            return (await gateway.get("/ready")).body["status"] == "ready"
        except aiohttp.ClientConnectionError:
            return False

    await eventually(is_ready, timeout_seconds=START_SECONDS)


@asynccontextmanager
async def run_stack(
    directory: Path, *arguments: str, trusted: ssl.SSLContext | None = None, **settings: str
) -> AsyncGenerator[RunningStack]:
    """Run `agent-gateway up` with its data in `directory` until the context ends.

    It is ready. With `trusted`, the client uses https and this TLS context.
    """
    port, tools_port = find_free_port(), find_free_port()
    data_dir = directory / "data"
    environment = clean_environment(
        GATEWAY_PORT=str(port),
        TOOLS_SERVER_PORT=str(tools_port),
        GATEWAY_DATA_DIR=str(data_dir),
        LOGNAME=f"agw-{port}",
        **settings,
    )
    output = directory / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            gateway_command("up", *arguments),
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def has_announced() -> bool:
            assert process.poll() is None, output.read_text()
            return b"\nTry:" in output.read_bytes()

        await eventually(has_announced, timeout_seconds=START_SECONDS)
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(ssl=trusted or True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            url = f"{'https' if trusted else 'http'}://127.0.0.1:{port}"
            stack = RunningStack(url, session, process, data_dir, tools_port, environment, output)
            await stack.wait_until_ready()
            yield stack
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


Stack = TypeVar("Stack", bound=RunningStack)


@asynccontextmanager
async def run_serve(
    kind: type[Stack], directory: Path, *arguments: str, timeout_seconds: float = 300.0, **settings: str
) -> AsyncGenerator[Stack]:
    """Run `agent-gateway serve` with its embedded Postgres in `directory`.

    `timeout_seconds` limits each request of its client.
    """
    port, data_dir, output = find_free_port(), directory / "data", directory / "output"
    environment = clean_environment(
        GATEWAY_PORT=str(port), GATEWAY_DATA_DIR=str(data_dir), LOGNAME=f"agw-{port}", **settings
    )
    with output.open("wb") as out:
        process = subprocess.Popen(
            gateway_command("serve", *arguments), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_seconds)) as session:
            running = kind(f"http://127.0.0.1:{port}", session, process, data_dir, 0, environment, output)

            async def is_healthy() -> bool:
                try:
                    return (await running.get("/health")).status == 200
                except aiohttp.ClientConnectionError:
                    assert process.poll() is None, output.read_text()
                    return False

            await eventually(is_healthy, timeout_seconds=START_SECONDS)
            yield running
    finally:
        process.terminate()  # unlike a killed process, it stops its Postgres before the directory is removed
        try:
            await asyncio.to_thread(process.wait, 30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
