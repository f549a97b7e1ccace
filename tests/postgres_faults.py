"""Faults of a database: silent connections, and clusters that tests break."""

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from gateway_runtime import embedded_postgres
from gateway_runtime.cluster_paths import ClusterPaths
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from gateway_runtime.postgres.url import list_hosts, plain_dsn
from tests.eventually import eventually

FAST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


class SilentProxy:
    """A TCP proxy in front of a Postgres that can become silent.

    While it is silent, it accepts and acknowledges everything, and neither forwards nor answers anything: like a
    firewall that has lost its state, or a server whose storage stands still.
    """

    def __init__(self, socket_path: Path, port: int = 0) -> None:
        self.is_silent = False
        self.silent_bytes = 0
        self.silent_connections = 0
        """Connections on which something was sent in vain."""
        self._socket_path = socket_path
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[int]:
        """Serve until the end of the block; yields the port."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", self._port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in list(self._writers):
                writer.close()

    def become_silent(self) -> None:
        self.is_silent = True

    def heal(self) -> None:
        """Forward new connections again. Those from before stay silent."""
        self.is_silent = False

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        broken = asyncio.Event()
        try:
            if self.is_silent:
                await self._swallow(reader)
                return
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket_path)
            self._writers.add(server_writer)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._forward(reader, server_writer, broken))
                    tasks.create_task(self._forward(server_reader, writer, broken))
            finally:
                self._writers.discard(server_writer)
                server_writer.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, broken: asyncio.Event) -> None:
        with suppress(OSError, RuntimeError):  # RuntimeError: of uvloop, for writing to a connection that was reset
            while data := await reader.read(65_536):
                if self.is_silent and not broken.is_set():
                    broken.set()
                    self.silent_connections += 1
                if broken.is_set():
                    self.silent_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                self.silent_bytes += len(data)


@asynccontextmanager
async def serve_proxy(database_url: str) -> AsyncGenerator[tuple[SilentProxy, str]]:
    """Serve a proxy in front of a database.

    Yields the proxy and the database's URL through it.
    """
    [(sockets, _)] = list_hosts(database_url)
    proxy = SilentProxy(Path(sockets) / ".s.PGSQL.5432")
    path = plain_dsn(database_url).split("?")[0].rpartition("/")[2]
    async with proxy.serve() as port:
        yield proxy, f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{path}"


@contextmanager
def start_cluster(**settings: str) -> Generator[EmbeddedPostgres]:
    """Start a Postgres of its own for a test that breaks it."""
    with tempfile.TemporaryDirectory(prefix="agw-tests-") as directory:
        Path(directory).chmod(0o755)
        server = embedded_postgres.start_or_attach(Path(directory), settings=FAST_SETTINGS | settings)
        try:
            yield server
        finally:
            server.stop_if_started_here()


async def execute(url: str, *statements: str) -> None:
    """Execute statements, each in a transaction of its own."""
    connection = await asyncpg.connect(plain_dsn(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def set_read_only(server: EmbeddedPostgres, value: bool) -> None:
    """Make a cluster refuse writes, also those of open sessions.

    Its main process tells its sessions before it starts a new one that shows the setting.
    """
    setting = "on" if value else "off"
    await execute(
        f"{server.build_url('postgres')}&default_transaction_read_only=off",
        f"ALTER SYSTEM SET default_transaction_read_only = {setting}",
        "SELECT pg_reload_conf()",
    )

    async def has_setting() -> bool:
        connection = await asyncpg.connect(plain_dsn(server.build_url("postgres")))
        try:
            return await connection.fetchval("SHOW default_transaction_read_only") == setting
        finally:
            await connection.close()

    await eventually(has_setting)


def build_url_of_hosts(servers: list[EmbeddedPostgres]) -> str:
    """Return one URL for several clusters."""
    hosts = ",".join(list_hosts(server.build_url())[0][0] for server in servers)
    database = embedded_postgres.DATABASE_NAME
    return f"postgresql+asyncpg://postgres@/{database}?host={quote(hosts, safe='/,')}"


@contextmanager
def keep_starting_up(server: EmbeddedPostgres) -> Generator[None]:
    """Replace a running cluster by one that never finishes to start."""
    server.stop_if_started_here()
    paths = ClusterPaths(server.data_dir)
    signal_file = paths.cluster / "standby.signal"
    signal_file.touch()
    paths.change_owner(signal_file)
    command = [paths.programs / "postgres", "-D", paths.cluster, "-k", paths.sockets, "-c", "listen_addresses="]
    process = subprocess.Popen(
        [*map(str, command), "-c", "hot_standby=off"],
        **paths.get_process_options(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        signal_file.unlink()
        server.ensure_running()
