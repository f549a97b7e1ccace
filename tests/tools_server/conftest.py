"""The tool server over real HTTP, and web servers it calls.

It runs in this event loop or as a process.
"""

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from gateway.mcp_client.caller_identity import TokenSigner, sign_with_secret
from tests.eventually import TIMEOUT_SECONDS, eventually
from tests.stack import SECRET, find_free_port
from tools_server.config import Settings
from tools_server.http_server import HttpServer
from tools_server.server import create_app, create_server
from tools_server.tasks.store import TaskStore

ROOT = Path(__file__).parent.parent.parent
NO_DATABASE = "postgresql+asyncpg://postgres@127.0.0.1:9/none"
ERAS = ["auto", "legacy"]

_START_SECONDS = 45.0
"""Timeout of a process, which imports much before it serves."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **{"tools_server_secret": SECRET, "database_url": NO_DATABASE, **values})  # type: ignore[call-arg]


class _Server(HttpServer):
    """A server without signal handlers.

    It stops at an event instead of polling every 100 ms.
    """

    def __init__(self, app: Any, before_stop: Callable[[], None]) -> None:
        super().__init__(app, before_stop)
        self.stop = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        await self.stop.wait()


@asynccontextmanager
async def serve(app: Any, before_stop: Callable[[], None] = lambda: None) -> AsyncGenerator[str]:
    """Serve an ASGI application on a free port; yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(app, before_stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop.set()
        async with asyncio.timeout(30):
            await serving


@asynccontextmanager
async def serve_tools(**values: Any) -> AsyncGenerator[str]:
    """Serve the tool server with these settings; yield its address without `/mcp`."""
    server_settings = settings(**values)
    store = TaskStore(server_settings.postgres_url or NO_DATABASE, timeout_seconds=60)
    mcp = create_server(server_settings, store)
    try:
        async with serve(create_app(mcp, server_settings), mcp.close_listen_streams) as address:
            yield address
    finally:
        await store.close()


@asynccontextmanager
async def connect(
    address: str, era: str, *, elicitation_callback: Any = None, **headers: str
) -> AsyncGenerator[Client]:
    """Connect a client.

    Each request has a token for the user of `acting_for`.
    """
    hooks: dict[str, list[Any]] = {"request": [make_secret_signer().add_token]}
    async with (
        httpx2.AsyncClient(event_hooks=hooks, headers=headers, timeout=TIMEOUT_SECONDS) as http,
        Client(
            streamable_http_client(f"{address}/mcp", http_client=http),
            mode=era,  # pyright: ignore[reportArgumentType]
            read_timeout_seconds=TIMEOUT_SECONDS,
            elicitation_callback=elicitation_callback,
        ) as client,
    ):
        yield client


def make_secret_signer() -> TokenSigner:
    """Sign tokens like a gateway with the deprecated TOOLS_SERVER_SECRET."""
    return TokenSigner(partial(sign_with_secret, SECRET), "tools-server")


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


@asynccontextmanager
async def serve_web(handler: Handler) -> AsyncGenerator[str]:
    """Serve every path with the handler on loopback; yield the address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def closed_port() -> int:
    """Return a port without a listener."""
    return find_free_port()


@dataclass
class Ended:
    code: int
    stderr: str


@dataclass
class ToolServerProcess:
    """A running `tools-server` process."""

    process: asyncio.subprocess.Process
    address: str

    async def ready(self, trusted: ssl.SSLContext | None = None) -> None:
        async with httpx2.AsyncClient(verify=trusted or True, timeout=TIMEOUT_SECONDS) as http:

            async def healthy() -> bool:
                try:
                    response = await http.get(f"{self.address}/health")
                except httpx2.ConnectError:
                    assert self.process.returncode is None, (await self.process.communicate())[1].decode()
                    return False
                assert response.status_code == 200
                return True

            await eventually(healthy, timeout_seconds=_START_SECONDS)

    async def end(self, by: signal.Signals | None = signal.SIGTERM) -> Ended:
        """Send the signal, if any, and wait until the process has ended."""
        if by is not None:
            self.process.send_signal(by)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            _, stderr = await self.process.communicate()
        assert self.process.returncode is not None
        return Ended(self.process.returncode, stderr.decode())


def environment(**values: str) -> dict[str, str]:
    defaults = {"DATABASE_URL": NO_DATABASE, "TOOLS_SERVER_SECRET": SECRET, "LOG_JSON": "true"}
    return {"PATH": os.environ["PATH"], **defaults, **values}


@asynccontextmanager
async def run_tools_server(**values: str) -> AsyncGenerator[ToolServerProcess]:
    """Run `tools-server` over HTTP with this environment.

    By default it uses a free port.
    """
    port = values.setdefault("TOOLS_SERVER_PORT", str(closed_port()))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools_server.cli",
        cwd=ROOT,
        env=environment(**values),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield ToolServerProcess(process, f"http://127.0.0.1:{port}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def tools(database_url: str) -> AsyncGenerator[str]:
    """The address of a tool server with its own database."""
    async with serve_tools(database_url=database_url) as address:
        yield address
