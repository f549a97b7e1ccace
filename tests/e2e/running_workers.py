"""`agent-gateway serve --workers 2`, and its worker processes."""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from gateway.cli.serve import WORKER_NAME
from tests.e2e.running_stack import RunningStack, run_serve
from tests.stack import Client


class Workers(RunningStack):
    """The processes of `serve`, and which worker serves a connection."""

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def pids(self) -> set[int]:
        return {pid for pid in self.find_descendants() if _read_process_name(pid) == WORKER_NAME}

    def find_serving_workers(self, *client_ports: int) -> list[int]:
        """Return the workers that serve connections from those client ports."""
        return self._find_connected_workers(*((self.port, port) for port in client_ports))

    def find_calling_worker(self, client_port: int, server_port: int) -> int:
        """Return the worker that is the client of a connection."""
        return self._find_connected_workers((client_port, server_port))[0]

    def _find_connected_workers(self, *ports: tuple[int, int]) -> list[int]:
        """Return the worker with each connection.

        A connection is given by the worker's port and the port of its peer.

        Raises:
            ProcessLookupError: the worker of a connection has ended.
        """
        sockets = {link: pid for pid in self.pids() for link in _read_file_links(pid)}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {(row[1], row[2]): row[9] for row in rows if row[9] != "0"}
        addresses = [(f"0100007F:{own:04X}", f"0100007F:{peer:04X}") for own, peer in ports]
        found = [sockets.get(f"socket:[{inodes.get(address)}]") for address in addresses]
        if None in found:
            raise ProcessLookupError(f"no worker has one of the connections {ports}")
        return [pid for pid in found if pid is not None]

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
        """Open that many connections and return the workers that serve them.

        Raises:
            OSError: a worker ended meanwhile, or none listens.
        """

        async def connect() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            line = await reader.readline()
            if not line:
                raise ConnectionResetError("the worker has ended")
            assert line.startswith(b"HTTP/1.1 200")
            return writer

        async with asyncio.timeout(30):
            writers = await asyncio.gather(*(connect() for _ in range(connections)))
        try:
            return set(self.find_serving_workers(*(writer.get_extra_info("sockname")[1] for writer in writers)))
        finally:
            for writer in writers:
                writer.close()


def read_command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _read_process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _read_file_links(pid: int) -> list[str]:
    """Return the targets of a process's file descriptors.

    There are none if it has ended.
    """
    try:
        return [_read_link(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@asynccontextmanager
async def run_workers(**settings: str) -> AsyncGenerator[Workers]:
    """Run `serve --workers 2` with a database of its own."""
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        settings = {"SHUTDOWN_GRACE_SECONDS": "1", "HEARTBEAT_TIMEOUT_SECONDS": "300", "LOG_LEVEL": "ERROR"} | settings
        async with run_serve(Workers, Path(path), "--workers", "2", **settings) as running:
            yield running
