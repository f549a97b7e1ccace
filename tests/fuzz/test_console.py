"""Tests that send random bytes and messages to the console."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.conftest import ServeSharedGateway
from tests.fuzz.http_bytes import generate_requests, send_requests
from tests.fuzz.loop_watch import MAX_LAG_SECONDS, MAX_MEMORY_BYTES
from tests.fuzz.socket_messages import generate_frames
from tests.gateway_console.running_console import run_console
from tests.web_socket_client import CLOSE, TEXT, build_frame, connect

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
SEEDS = range(int(os.environ.get("FUZZ_SEEDS", "1")))
REFUSED = ("AttributeError", "IndexError", "KeyError", "TypeError", "ValueError", "MemoryError")
REQUESTS, SOCKETS, FRAMES = 400, 60, 20
PATHS = [
    b"/",
    b"/sign-in",
    b"/sign-out",
    b"/health",
    b"/tools",
    b"/tools/a%00b",
    b"/chat/x",
    b"/turns/%ff",
    b"/compare/1/2",
    b"/favicon.ico",
    b"/_nicegui/client/x/upload/1",
    b"/_nicegui/auto/static/%2e%2e/%2e%2e/nicegui.py",
    b"/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
    b"/_nicegui_ws/socket.io/?EIO=4&transport=polling",
]


class RunningConsole:
    """A console with a session of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession, output: Path) -> None:
        self.url = url
        self.session = session
        self.output = output

    @property
    def cookie(self) -> str:
        return "; ".join(f"{cookie.key}={cookie.value}" for cookie in self.session.cookie_jar)

    async def open_page(self) -> str:
        """Return the id of a new page."""
        async with self.session.get(self.url) as response:
            found = re.search(r"client_id['\"]?\s*[:=]\s*['\"]([0-9a-f-]{36})", await response.text())
        assert found is not None
        return found[1]

    def measure_memory(self) -> int:
        """Return the resident bytes of the console's process."""
        port = self.url.rpartition(":")[2]
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"CONSOLE_PORT={port}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    return int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        raise AssertionError("the console has ended")

    async def measure_lag(self) -> float:
        started_at = time.monotonic()
        async with self.session.get(f"{self.url}/health") as response:
            assert response.status == 200
        return time.monotonic() - started_at

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncGenerator[None]:
        """Check the memory and the longest answer of `/health`."""
        before, lags = self.measure_memory(), list[float]()

        async def measure() -> None:
            while True:
                lags.append(await self.measure_lag())
                await asyncio.sleep(0.05)

        task = asyncio.create_task(measure())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert self.measure_memory() - before <= MAX_MEMORY_BYTES
        assert max(lags) <= MAX_LAG_SECONDS


Consoles = tuple[RunningConsole, RunningConsole]


@pytest.fixture(scope="module")
async def consoles(
    serve_shared_gateway: ServeSharedGateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Consoles]:
    """A console and two of its sessions."""
    gateway, directory = await serve_shared_gateway(), tmp_path_factory.mktemp("console")
    async with (
        run_console(gateway.base_url, directory) as url,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as first,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as second,
    ):
        output = directory / "output"
        running = (RunningConsole(url, first, output), RunningConsole(url, second, output))
        for console in running:
            await console.open_page()
        yield running


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_bytes_cause_no_error_lag_or_growth_of_the_console(consoles: Consoles, seed: int) -> None:
    console = consoles[0]
    headers = (f"Cookie: {console.cookie}".encode(), f"Origin: {console.url}".encode())
    async with console.watch():
        host = urlsplit(console.url).netloc.encode()
        requests = generate_requests(seed, REQUESTS, PATHS, host=host, optional=headers)
        report = await send_requests(console.url, requests)
    assert report.server_errors == []
    assert sum(report.statuses.values()) == REQUESTS
    assert report.statuses.get("400", 0) > 0


def send_frames(url: str, headers: dict[str, str], frames: list[bytes], *, reads: bool) -> None:
    """Open a socket, greet, and send frames until the console closes it."""
    client = connect(url, headers)
    client.settimeout(5)
    with client, contextlib.suppress(ConnectionError, TimeoutError):
        client.sendall(build_frame(TEXT, b"40"))
        while b"40{" not in client.recv(65_536):
            pass
        for frame in frames:
            client.sendall(frame)
            if reads:
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.recv(65_536)
                client.settimeout(5)
        client.sendall(build_frame(CLOSE))
        while reads and client.recv(65_536):
            pass


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_messages_cause_no_error_lag_or_growth_of_the_console(consoles: Consoles, seed: int) -> None:
    console = consoles[1]
    headers = {"Cookie": console.cookie, "Origin": console.url}
    pages = [await console.open_page() for _ in range(4)]
    async with console.watch():
        for number in range(SOCKETS):
            page = pages[number % len(pages)]
            url = f"{console.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id={page}"
            frames = list(generate_frames(seed * SOCKETS + number, FRAMES, page))
            await asyncio.to_thread(send_frames, url, headers, frames, reads=number % 2 == 0)
    assert await console.open_page()
    output = console.output.read_text()
    assert "message_refused" in output
    assert not {error for error in REFUSED if f"{error}: " in output}
