"""A Postgres behind a TLS terminator on TCP, and a PgBouncer."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from urllib.parse import quote

from gateway_runtime.cluster_paths import ClusterPaths
from tests.certificates import Certificate, create_certificate
from tests.eventually import eventually_blocking
from tests.postgres_faults import start_cluster
from tests.stack import find_free_port

PASSWORD = "p@ss/w:o#r?d%41 &+ü"
_HBA = "local all postgres trust\nlocal all all scram-sha-256\n"
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@dataclass
class TcpPostgres:
    """A running cluster, on 127.0.0.1 and ::1. Its user `gw` needs PASSWORD."""

    paths: ClusterPaths
    certificate: Certificate
    port: int
    """Accepts connections with and without TLS."""
    tls_port: int
    """Closes connections without TLS."""
    uses_tls: list[bool] = field(default_factory=list)
    """For each connection, in order."""

    @property
    def admin_dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.paths.sockets), safe='/')}"


@contextmanager
def serve_tcp_postgres() -> Generator[TcpPostgres]:
    """Serve a new cluster on TCP of this machine.

    The embedded Postgres has no TLS, and listens on a socket of its own: a terminator stands before it.
    """
    with tempfile.TemporaryDirectory(prefix="agw-tests-", dir="/tmp") as path:
        directory = Path(path)
        directory.chmod(0o755)
        hba = directory / "hba.conf"
        hba.write_text(_HBA)
        hba.chmod(0o644)
        with start_cluster(hba_file=str(hba), password_encryption="scram-sha-256") as server:
            server = TcpPostgres(
                ClusterPaths(server.data_dir), create_certificate(directory), find_free_port(), find_free_port()
            )
            with _run_in_thread(_TlsTerminator(server)):
                yield server


@contextmanager
def serve_pgbouncer(postgres: TcpPostgres, *, mode: str = "transaction") -> Generator[int]:
    """Serve a PgBouncer before all databases; yields its port."""
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="agw-tests-", dir="/tmp") as path:
        directory = Path(path)
        (directory / "users.txt").write_text(f'"gw" "{PASSWORD}"\n')
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={postgres.paths.sockets} port=5432\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {directory}/users.txt\npool_mode = {mode}\n"
        )
        for file in (directory, *directory.iterdir()):
            file.chmod(0o755)
        process = subprocess.Popen(
            [find_program("pgbouncer"), "-q", str(directory / "pgbouncer.ini")],
            **postgres.paths.get_process_options(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually_blocking(lambda: _accepts(port))
            yield port
        finally:
            process.kill()
            process.wait(30)


def find_program(name: str) -> str:
    """Return the path of a program, or an empty text."""
    return shutil.which(name, path=f"{environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


class _TlsTerminator:
    """Ends TLS as Postgres does, and forwards to its socket."""

    def __init__(self, server: TcpPostgres) -> None:
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server.certificate.cert, server.certificate.key)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())

    def wait_until_started(self) -> None:
        assert self._started.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        hosts = ["127.0.0.1", "::1"]
        servers = [
            await asyncio.start_server(self._handle, hosts, port) for port in (self._server.port, self._server.tls_port)
        ]
        self._started.set()
        await self._stop.wait()
        for server in servers:
            server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            start = await reader.readexactly(8)
            uses_tls = start == _SSL_REQUEST
            is_refused = not uses_tls and writer.get_extra_info("sockname")[1] == self._server.tls_port
            if uses_tls:
                writer.write(b"S")
                await writer.start_tls(self._context)
                start = b""
            if not is_refused:
                self._server.uses_tls.append(uses_tls)
                path = self._server.paths.sockets / ".s.PGSQL.5432"
                server_reader, server_writer = await asyncio.open_unix_connection(path)
                server_writer.write(start)
                await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def _run_in_thread(terminator: _TlsTerminator) -> Generator[None]:
    thread = threading.Thread(target=terminator.run, daemon=True)
    thread.start()
    try:
        terminator.wait_until_started()
        yield
    finally:
        terminator.stop()
        thread.join(30)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
