"""Gateway processes that share a database and their peers."""

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment, gateway_command, wait_until_ready
from tests.eventually import eventually
from tests.processes import freeze_process
from tests.stack import SECRET, Client, find_free_port


@dataclass
class Worker(Client):
    """A gateway process and an HTTP client of it."""

    base_url: str
    session: aiohttp.ClientSession
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        freeze_process(self.process.pid)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def run_process(
    argv: list[str], url: str, session: aiohttp.ClientSession, **settings: str
) -> AsyncGenerator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(argv, cwd=ROOT, env=clean_environment(**settings), stderr=subprocess.DEVNULL)
    try:

        async def is_serving() -> bool:
            try:
                async with session.get(url):
                    return True
            except aiohttp.ClientConnectionError:
                assert running.poll() is None
                return False

        await eventually(is_serving, timeout_seconds=START_SECONDS)
        yield running
    finally:
        running.kill()
        running.wait()


class Cluster:
    """Starts workers that share a database, simulated Groq and tool server."""

    def __init__(
        self, database_url: str, groq: str, tools: str, session: aiohttp.ClientSession, **changes: str
    ) -> None:
        self._settings = {
            "DATABASE_URL": database_url,
            "GROQ_API_KEY": "simulated",
            "GROQ_BASE_URL": groq,
            "RATE_LIMIT_ENABLED": "false",
            "HEARTBEAT_SECONDS": "1",
            "HEARTBEAT_TIMEOUT_SECONDS": "60",
            "MCP_SERVER_URL": tools,
            "TOOLS_SERVER_SECRET": SECRET,
            "LOG_LEVEL": "ERROR",
        } | changes
        self._session = session

    def change_settings(self, **changes: str) -> None:
        """Change the environment variables of all workers to come."""
        self._settings |= changes

    @asynccontextmanager
    async def run_worker(self, **changes: str) -> AsyncGenerator[Worker]:
        """Run a worker that is ready; `changes` are environment variables."""
        port = find_free_port()
        base_url = f"http://127.0.0.1:{port}"
        settings = self._settings | {"GATEWAY_PORT": str(port)} | changes
        async with run_process(gateway_command("serve"), f"{base_url}/health", self._session, **settings) as running:
            worker = Worker(base_url, self._session, running)
            await wait_until_ready(worker)
            yield worker


@asynccontextmanager
async def start_cluster(database_url: str) -> AsyncGenerator[Cluster]:
    groq, tools = find_free_port(), find_free_port()
    simulator = [sys.executable, "-m", "gateway.simulator", "--port", str(groq), "--tokens-per-second", "100"]
    server = [sys.executable, "-m", "tools_server.cli"]
    settings = {"DATABASE_URL": database_url, "TOOLS_SERVER_SECRET": SECRET, "TOOLS_SERVER_PORT": str(tools)}
    # Without reuse: the server may close an idle connection at the moment of the next request.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=150)) as session,
        run_process(simulator, f"http://127.0.0.1:{groq}/", session),
        run_process(server, f"http://127.0.0.1:{tools}/health", session, **settings),
    ):
        yield Cluster(database_url, f"http://127.0.0.1:{groq}", f"http://127.0.0.1:{tools}/mcp", session)
