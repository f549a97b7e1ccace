"""Tests of certificates that are replaced while servers run."""

import asyncio
import hashlib
import signal
import ssl
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.certificates import Certificate, create_certificate
from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment, gateway_command
from tests.eventually import eventually
from tests.stack import find_free_port

CONNECTIONS = 12
"""So many that each of two workers gets some."""


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def fingerprint(certificate: Certificate) -> str:
    loaded = x509.load_pem_x509_certificate(certificate.cert.read_bytes())
    return hashlib.sha256(loaded.public_bytes(Encoding.DER)).hexdigest()


class TlsConnection:
    """A connection that stays open, and the certificate of its server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self.fingerprint = hashlib.sha256(served).hexdigest()

    async def get_status(self) -> int:
        self._writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(30):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
            )
            await self._reader.readexactly(length)
        return int(head.split()[1])

    def close(self) -> None:
        self._writer.transport.abort()


class Server:
    """Processes that serve https on one port, and their log."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path, count: int) -> None:
        self.process = process
        self._port = port
        self._count = count
        self.log = log

    async def connect(self) -> TlsConnection:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        async with asyncio.timeout(30):
            return TlsConnection(*await asyncio.open_connection("127.0.0.1", self._port, ssl=context))

    async def list_fingerprints(self) -> set[str]:
        """Return the certificates that new connections get."""
        connections = await asyncio.gather(*(self.connect() for _ in range(CONNECTIONS)))
        for connection in connections:
            connection.close()
        return {connection.fingerprint for connection in connections}

    async def is_serving(self) -> bool:
        try:
            (await self.connect()).close()
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False
        return True

    async def reload(self, event: str) -> None:
        """Send SIGHUP; wait until each process has logged the event."""
        expected = self.log.read_text().count(event) + self._count
        self.process.send_signal(signal.SIGHUP)
        await eventually(lambda: self.log.read_text().count(event) == expected)


@asynccontextmanager
async def serve(directory: Path, certificate: Certificate, workers: int) -> AsyncGenerator[Server]:
    port, log = find_free_port(), directory / "log"
    environment = clean_environment(
        GATEWAY_PORT=str(port), GATEWAY_DATA_DIR=str(directory / "data"), LOG_LEVEL="INFO", **certificate.to_settings()
    )
    with log.open("wb") as output:
        command = gateway_command("serve", "--workers", str(workers))
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    server = Server(process, port, log, workers)
    try:
        await eventually(server.is_serving, timeout_seconds=START_SECONDS)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def write_garbage(certificate: Certificate) -> None:
    certificate.cert.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")


def remove_key(certificate: Certificate) -> None:
    certificate.key.unlink()


def replace_only_the_certificate(certificate: Certificate) -> None:
    key = certificate.key.read_bytes()
    create_certificate(certificate.cert.parent)
    certificate.key.write_bytes(key)


def let_it_expire(certificate: Certificate) -> None:
    create_certificate(certificate.cert.parent, days=-1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_new_certificate_is_served_after_sighup_and_connections_stay(directory: Path, workers: int) -> None:
    """Replace an EC certificate by an RSA one."""
    certificate = create_certificate(directory)
    old = fingerprint(certificate)
    async with serve(directory, certificate, workers) as server:
        if workers > 1:
            await eventually(lambda: "2 workers at" in server.log.read_text())
        assert await server.list_fingerprints() == {old}
        connections = [await server.connect() for _ in range(CONNECTIONS)]
        # A connection without a first request has a time limit.
        assert [await connection.get_status() for connection in connections] == [200] * CONNECTIONS
        create_certificate(directory, rsa_key=True)
        new = fingerprint(certificate)
        assert await server.list_fingerprints() == {old}  # not before the signal
        await server.reload("tls_certificate_reloaded")
        assert await server.list_fingerprints() == {new}
        assert [await connection.get_status() for connection in connections] == [200] * CONNECTIONS
        create_certificate(directory)
        await server.reload("tls_certificate_reloaded")
        assert await server.list_fingerprints() == {fingerprint(certificate)}
        assert [await connection.get_status() for connection in connections] == [200] * CONNECTIONS
        for connection in connections:
            connection.close()


async def test_bad_new_certificate_is_refused_and_the_old_one_stays(directory: Path) -> None:
    certificate = create_certificate(directory)
    old = fingerprint(certificate)
    files = certificate.cert.read_bytes(), certificate.key.read_bytes()
    attacks: list[tuple[Callable[[Certificate], None], str]] = [
        (write_garbage, "holds no certificate in PEM"),
        (remove_key, "cannot read"),
        (replace_only_the_certificate, "is not the key of the certificate"),
        (let_it_expire, "the certificate expired on"),
    ]
    async with serve(directory, certificate, 2) as server:
        await eventually(lambda: "2 workers at" in server.log.read_text())
        for break_files, problem in attacks:
            break_files(certificate)
            await server.reload("tls_certificate_refused")
            assert server.log.read_text().count(problem) == 2
            assert await server.list_fingerprints() == {old}
            certificate.cert.write_bytes(files[0])
            certificate.key.write_bytes(files[1])
        assert server.process.poll() is None
