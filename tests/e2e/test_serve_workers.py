"""`agent-gateway serve --workers 2`: one pair of processes for all of these tests, which it does not survive."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.up import ROOT, START_SECONDS, Up, clean_environment, command
from tests.eventually import eventually
from tests.stack import Client, free_port

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc")


class Workers(Up):
    """The processes, and who of them serves a connection."""

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def pids(self) -> set[int]:
        return {pid for pid in self.descendants() if b"--fd" in _words(pid) and b"serve" in _words(pid)}

    def serving(self, *client_ports: int) -> list[int]:
        """The workers at the other ends of connections from those ports."""
        sockets = {_link(fd): pid for pid in self.pids() for fd in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {(row[1], row[2]): row[9] for row in rows if row[9] != "0"}
        ours = f"0100007F:{self.port:04X}"
        return [sockets[f"socket:[{inodes[ours, f'0100007F:{port:04X}']}]"] for port in client_ports]

    @asynccontextmanager
    async def client_of(self, wanted: int) -> AsyncGenerator[Client]:
        """A client whose one connection goes to that worker."""
        while True:
            used: list[socket.socket] = []

            def made(address: Any, used: list[socket.socket] = used) -> socket.socket:
                used.append(socket.socket(*address[:3]))
                used[0].setblocking(False)
                return used[0]

            connector = aiohttp.TCPConnector(limit=1, socket_factory=made)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
                client = Client(self.base_url, session)
                await client.get("/health")
                if self.serving(used[0].getsockname()[1]) == [wanted]:
                    yield client
                    return

    async def served_by(self, connections: int) -> set[int]:
        """The workers that so many new connections go to."""

        async def one() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            return writer

        async with asyncio.timeout(30):
            opened = await asyncio.gather(*(one() for _ in range(connections)))
        try:
            return set(self.serving(*(writer.get_extra_info("sockname")[1] for writer in opened)))
        finally:
            for writer in opened:
                writer.close()


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.fixture(scope="module")
async def workers() -> AsyncGenerator[Workers]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        port, data_dir, output = free_port(), Path(path) / "data", Path(path) / "output"
        environment = clean_environment(
            GATEWAY_PORT=str(port), GATEWAY_DATA_DIR=str(data_dir), SHUTDOWN_GRACE_SECONDS="1", LOG_LEVEL="ERROR"
        )
        with output.open("wb") as out:
            process = subprocess.Popen(
                command("serve", "--workers", "2"), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            async with aiohttp.ClientSession() as session:
                running = Workers(f"http://127.0.0.1:{port}", session, process, data_dir, 0, environment, output)

                async def healthy() -> bool:
                    try:
                        return (await running.get("/health")).status == 200
                    except aiohttp.ClientConnectionError:
                        assert process.poll() is None, output.read_text()
                        return False

                await eventually(healthy, timeout_seconds=START_SECONDS)
                yield running
        finally:
            process.kill()
            process.wait()


async def test_serve_is_healthy_only_once_both_workers_serve(workers: Workers) -> None:
    assert await workers.served_by(40) == workers.pids()
    assert len(workers.pids()) == 2
    said = workers.output.read_text()
    assert "2 workers at http://127.0.0.1:" in said
    assert "without REDIS_URL each of the 2 workers counts rate limits" in said


async def test_postgres_and_the_simulated_groq_are_started_once(workers: Workers) -> None:
    simulators = [pid for pid in workers.descendants() if b"gateway.simulator" in _words(pid)]
    assert len(simulators) == 1
    assert len(workers.descendants()) == 4  # two workers, the simulator, the postmaster
    for pid in workers.pids():
        async with workers.client_of(pid) as client:
            assert (await client.chat("What is 2+2?")).status == 200
    assert await workers.rows("SELECT count(*), count(DISTINCT worker_id) FROM turns") == [(2, 2)]


async def test_sighup_stops_no_worker(workers: Workers) -> None:
    before = workers.pids()
    workers.process.send_signal(signal.SIGHUP)
    assert await workers.served_by(10) <= before
    assert workers.pids() == before
    assert workers.process.poll() is None


async def test_killed_worker_is_replaced_while_the_other_serves(workers: Workers) -> None:
    gone, stays = workers.pids()
    os.kill(gone, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{gone}").exists())  # its socket may outlive its name
    assert stays in await workers.served_by(10)

    async def both_serve() -> set[int] | None:
        serving = await workers.served_by(20)
        return serving if len(serving) == 2 else None

    serving = await eventually(both_serve, timeout_seconds=START_SECONDS)
    assert serving == workers.pids()
    assert stays in serving


async def test_sigterm_closes_streams_of_all_workers_and_leaves_no_process(workers: Workers) -> None:
    pids = workers.descendants()
    one, other = workers.pids()
    async with (
        workers.client_of(one) as first,
        workers.client_of(other) as second,
        first.stream("count to 5000") as begun,
        second.stream("count to 5000") as also,
    ):
        for stream in (begun, also):
            await stream.until("text.delta")
        workers.process.terminate()
        for stream in (begun, also):
            assert (await stream.until("stream.closing")).data["reason"] == "server_stopping"
    assert await workers.until_gone() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
