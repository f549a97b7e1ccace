"""Tests of `agent-gateway serve --workers 2`.

All use the same processes, in order; the last test stops them.
"""

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

from tests.e2e.running_stack import ROOT, START_SECONDS, RunningStack, clean_environment, gateway_command
from tests.eventually import eventually
from tests.stack import Client, Stream, find_free_port

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc")


class Workers(RunningStack):
    """The processes of `serve`, and which worker serves a connection."""

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def pids(self) -> set[int]:
        return {
            pid
            for pid in self.find_descendants()
            if b"--fd" in _read_command_line(pid) and b"serve" in _read_command_line(pid)
        }

    def find_serving_workers(self, *client_ports: int) -> list[int]:
        """Return the workers that serve connections from those client ports."""
        sockets = {_read_link(fd): pid for pid in self.pids() for fd in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {(row[1], row[2]): row[9] for row in rows if row[9] != "0"}
        server_address = f"0100007F:{self.port:04X}"
        return [sockets[f"socket:[{inodes[server_address, f'0100007F:{port:04X}']}]"] for port in client_ports]

    async def have_served(self, count: int) -> bool:
        """Return whether so many workers serve new connections."""
        return len(await self.find_workers_of_new_connections(20)) == count

    @asynccontextmanager
    async def connect_to_worker(self, pid: int) -> AsyncGenerator[Client]:
        """Connect a client whose only connection is served by that worker."""
        while True:
            sockets: list[socket.socket] = []

            def create_socket(address: Any, sockets: list[socket.socket] = sockets) -> socket.socket:
                sockets.append(socket.socket(*address[:3]))
                sockets[0].setblocking(False)
                return sockets[0]

            connector = aiohttp.TCPConnector(limit=1, socket_factory=create_socket)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
                client = Client(self.base_url, session)
                await client.get("/health")
                if self.find_serving_workers(sockets[0].getsockname()[1]) == [pid]:
                    yield client
                    return

    async def find_workers_of_new_connections(self, connections: int) -> set[int]:
        """Open that many connections and return the workers that serve them."""

        async def connect() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            return writer

        async with asyncio.timeout(30):
            writers = await asyncio.gather(*(connect() for _ in range(connections)))
        try:
            return set(self.find_serving_workers(*(writer.get_extra_info("sockname")[1] for writer in writers)))
        finally:
            for writer in writers:
                writer.close()


def _read_command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.fixture(scope="module")
async def workers() -> AsyncGenerator[Workers]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        port, data_dir, output = find_free_port(), Path(path) / "data", Path(path) / "output"
        environment = clean_environment(
            GATEWAY_PORT=str(port),
            GATEWAY_DATA_DIR=str(data_dir),
            SHUTDOWN_GRACE_SECONDS="1",
            HEARTBEAT_TIMEOUT_SECONDS="300",
            LOG_LEVEL="ERROR",
        )
        with output.open("wb") as out:
            process = subprocess.Popen(
                gateway_command("serve", "--workers", "2"),
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            async with aiohttp.ClientSession() as session:
                running = Workers(f"http://127.0.0.1:{port}", session, process, data_dir, 0, environment, output)

                async def is_healthy() -> bool:
                    try:
                        return (await running.get("/health")).status == 200
                    except aiohttp.ClientConnectionError:
                        assert process.poll() is None, output.read_text()
                        return False

                await eventually(is_healthy, timeout_seconds=START_SECONDS)
                yield running
        finally:
            process.kill()
            process.wait()


async def test_serve_is_healthy_only_once_both_workers_serve(workers: Workers) -> None:
    assert await workers.find_workers_of_new_connections(40) == workers.pids()
    assert len(workers.pids()) == 2
    output = workers.output.read_text()
    assert "2 workers at http://127.0.0.1:" in output
    assert "without REDIS_URL each of the 2 workers counts rate limits" in output


async def test_postgres_and_the_simulated_groq_are_started_once(workers: Workers) -> None:
    simulators = [pid for pid in workers.find_descendants() if b"gateway.simulator" in _read_command_line(pid)]
    assert len(simulators) == 1
    assert len(workers.find_descendants()) == 4  # two workers, the simulator, the postmaster
    for pid in workers.pids():
        async with workers.connect_to_worker(pid) as client:
            assert (await client.chat("What is 2+2?")).status == 200
    assert await workers.query("SELECT count(*), count(DISTINCT worker_id) FROM turns") == [(2, 2)]


async def test_sighup_stops_no_worker(workers: Workers) -> None:
    before = workers.pids()
    workers.process.send_signal(signal.SIGHUP)
    assert await workers.find_workers_of_new_connections(10) <= before
    assert workers.pids() == before
    assert workers.process.poll() is None


def is_zombie(pid: int) -> bool:
    """Return whether a process and all of its threads have ended."""
    has_one_thread = len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    return has_one_thread and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


async def test_killed_worker_is_replaced_while_the_other_serves(workers: Workers) -> None:
    killed, other = workers.pids()
    workers.process.send_signal(signal.SIGSTOP)  # or the replacement might serve already
    try:
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: is_zombie(killed))  # all of its sockets are closed then
        assert await workers.find_workers_of_new_connections(10) == {other}
    finally:
        workers.process.send_signal(signal.SIGCONT)

    async def find_two_workers() -> set[int] | None:
        serving = await workers.find_workers_of_new_connections(20)
        return serving if len(serving) == 2 else None

    serving = await eventually(find_two_workers, timeout_seconds=START_SECONDS)
    assert serving == workers.pids()
    assert other in serving


async def test_turns_of_a_killed_worker_are_taken_over_at_once(workers: Workers) -> None:
    """The lease would last longer than the test."""
    killed, other = workers.pids()
    async with workers.connect_to_worker(other) as client:
        async with workers.connect_to_worker(killed) as first, first.stream("count to 500") as stream:
            await stream.read_until("text.delta")
            turn_id = stream.response.headers["x-turn-id"]
            os.kill(killed, signal.SIGKILL)
        async with client.session.get(f"{client.base_url}/api/v1/turns/{turn_id}/events") as response:
            events = [event async for event in Stream(response).read_events()]
    assert events[-2].type == "turn.completed"
    assert "takeover" in [event.data["reason"] for event in events if event.type == "model.retry"]
    assert await workers.query("SELECT count(*) FROM turns WHERE attempts > 0") == [(0,)]  # a completed step resets it
    await eventually(lambda: len(workers.pids()) == 2, timeout_seconds=START_SECONDS)
    await eventually(lambda: workers.have_served(2), timeout_seconds=START_SECONDS)


async def test_sigterm_closes_streams_of_all_workers_and_leaves_no_process(workers: Workers) -> None:
    pids = workers.find_descendants()
    first_pid, second_pid = workers.pids()
    async with (
        workers.connect_to_worker(first_pid) as first,
        workers.connect_to_worker(second_pid) as second,
        first.stream("count to 5000") as first_stream,
        second.stream("count to 5000") as second_stream,
    ):
        for stream in (first_stream, second_stream):
            await stream.read_until("text.delta")
        workers.process.terminate()
        for stream in (first_stream, second_stream):
            assert (await stream.read_until("stream.closing")).data["reason"] == "server_stopping"
    assert await workers.wait_for_exit() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
