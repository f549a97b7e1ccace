"""Tests of the variables that name trusted certificates."""

import asyncio
import os
import ssl
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest

from gateway.config import ConfigError, load_settings
from gateway.mcp_client import http_transport
from gateway_runtime.trusted_certificates import CERTIFICATE_VARIABLES
from tests.certificates import Certificate, create_certificate


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Certificate]:
    for name in CERTIFICATE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    http_transport.get_ssl_context.cache_clear()
    yield create_certificate(tmp_path)
    http_transport.get_ssl_context.cache_clear()


async def is_trusted(certificate: Certificate) -> bool:
    """Whether MCP and OAuth requests trust a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server, httpx2.AsyncClient(verify=http_transport.get_ssl_context(), trust_env=False) as client:
        port = server.sockets[0].getsockname()[1]
        try:
            return (await client.get(f"https://127.0.0.1:{port}/")).status_code == 204
        except httpx2.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise
            return False


@pytest.mark.parametrize("name", sorted(CERTIFICATE_VARIABLES))
@pytest.mark.parametrize("is_directory", [False, True])
async def test_certificates_of_each_variable_are_trusted(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, is_directory: bool
) -> None:
    path = certificate.cert
    if is_directory:
        path = tmp_path / "authorities"
        path.mkdir()
        (path / "own.crt").write_bytes(certificate.cert.read_bytes())
    monkeypatch.setenv(name, str(path))
    load_settings(_env_file=None)
    assert await is_trusted(certificate)


async def test_certificate_of_an_unknown_authority_is_refused(certificate: Certificate) -> None:
    assert not await is_trusted(certificate)


@pytest.mark.parametrize("value", ["missing.pem", "empty", "text.pem"])
@pytest.mark.parametrize("name", sorted(CERTIFICATE_VARIABLES))
def test_variable_without_certificates_is_refused_by_name(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pem").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / value))
    with pytest.raises(ConfigError, match=name):
        load_settings(_env_file=None)


async def test_file_and_directory_of_openssl_are_both_trusted(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = create_certificate(tmp_path / "other", name="other.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(other.cert))
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join([str(tmp_path / "other"), str(certificate.cert.parent)]))
    assert await is_trusted(certificate)
    assert await is_trusted(other)
