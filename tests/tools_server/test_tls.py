"""The tool server over https."""

import asyncio
import signal
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.mcp_client.http_transport import get_ssl_context
from gateway.simulator import Simulator
from gateway_runtime import tls
from tests.certificates import create_certificate
from tests.stack import serve_gateway
from tests.tools_server.conftest import ToolServerProcess, run_tools_server
from tools_server.config import ConfigError, load_settings


async def test_gateway_calls_a_tool_server_that_speaks_https(
    tmp_path: Path, database_url: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_certificate(tmp_path, password="opens the key")
    settings = made.to_settings("TOOLS_SERVER") | {"TOOLS_SERVER_TLS_KEY_PASSWORD": "opens the key"}
    async with run_tools_server(**settings, DATABASE_URL=database_url) as server:
        plain, server.address = server.address, server.address.replace("http://", "https://")
        trusted = ssl.create_default_context(cafile=str(made.cert))
        await server.ready(trusted)
        async with httpx2.AsyncClient(timeout=30) as http:
            with pytest.raises(httpx2.TransportError):
                await http.get(f"{plain}/health")
        monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
        get_ssl_context.cache_clear()
        try:
            async with serve_gateway(database_url, simulator, f"{server.address}/mcp") as gateway:
                response = await gateway.post("/api/v1/tools/calculator", {"expression": "23*19"})
                assert response.body["structured"]["result"] == 437
        finally:
            get_ssl_context.cache_clear()


@pytest.mark.parametrize(
    ("days", "password", "problem"),
    [
        (-1, "", "TOOLS_SERVER_TLS_CERT_FILE: {cert}: the certificate expired on "),
        (1, "superfluous", "TOOLS_SERVER_TLS_KEY_PASSWORD: is set, and the key is not encrypted"),
    ],
    ids=["expired certificate", "superfluous password"],
)
async def test_doubtful_tls_files_are_logged_and_served(
    tmp_path: Path, days: float, password: str, problem: str
) -> None:
    made = create_certificate(tmp_path, days=days)
    settings = made.to_settings("TOOLS_SERVER") | {"TOOLS_SERVER_TLS_KEY_PASSWORD": password}
    async with run_tools_server(**settings) as server:
        server.address = server.address.replace("http://", "https://")
        await server.ready(_without_verification())
        ended = await server.end()
    assert ended.code == 0
    assert '"event": "tls_files_doubtful"' in ended.stderr
    assert problem.format(cert=made.cert) in ended.stderr


async def test_certificate_is_read_again_at_sighup_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    made = create_certificate(tmp_path)

    async def reload(server: ToolServerProcess, event: str) -> None:
        assert server.process.stderr is not None
        server.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while event not in (line := (await server.process.stderr.readline()).decode()):
                assert line, "the tool server has ended"

    async def get_health(trusted: ssl.SSLContext) -> int:
        async with httpx2.AsyncClient(timeout=30, verify=trusted) as http:
            return (await http.get(f"{server.address}/health")).status_code

    async with run_tools_server(**made.to_settings("TOOLS_SERVER")) as server:
        server.address = server.address.replace("http://", "https://")
        old = ssl.create_default_context(cafile=str(made.cert))
        await server.ready(old)
        async with httpx2.AsyncClient(timeout=30, verify=old) as opened:
            assert (await opened.get(f"{server.address}/health")).status_code == 200
            create_certificate(tmp_path, rsa_key=True)
            new = ssl.create_default_context(cafile=str(made.cert))
            await reload(server, "tls_certificate_reloaded")
            assert await get_health(new) == 200
            with pytest.raises(httpx2.ConnectError):
                await get_health(old)
            assert (await opened.get(f"{server.address}/health")).status_code == 200  # over its old connection
        made.key.write_text("none")
        await reload(server, "tls_certificate_refused")
        assert await get_health(new) == 200
        assert (await server.end()).code == 0


def _without_verification() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_password_longer_than_openssl_allows_is_a_config_error(tmp_path: Path) -> None:
    made = create_certificate(tmp_path, password="right")
    files = tls.TlsFiles(made.cert, made.key, "x" * 5_000, "TOOLS_SERVER_TLS")
    with pytest.raises(ConfigError, match=r"^TOOLS_SERVER_TLS_KEY_PASSWORD: does not open "):
        tls.build_server_options(files, lambda _doubt: None)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda made: made.key.unlink(), "TOOLS_SERVER_TLS_KEY_FILE: cannot read .*: No such file"),
        (lambda made: made.cert.write_text("-"), "TOOLS_SERVER_TLS_CERT_FILE: .* holds no certificate in PEM"),
        (
            lambda made: made.key.write_bytes(create_certificate(made.cert.parent, name="other").key.read_bytes()),
            "TOOLS_SERVER_TLS_KEY_FILE: .* is not the key of the certificate in ",
        ),
        (
            lambda made: create_certificate(made.cert.parent, password="right"),
            "TOOLS_SERVER_TLS_KEY_PASSWORD: must be set: the key is encrypted",
        ),
    ],
    ids=["no key", "no PEM", "another's key", "encrypted"],
)
def test_files_that_cannot_serve_are_refused(tmp_path: Path, spoil: Any, line: str) -> None:
    made = create_certificate(tmp_path)
    spoil(made)
    settings = load_settings(_env_file=None, tools_server_tls_cert_file=made.cert, tools_server_tls_key_file=made.key)
    with pytest.raises(ConfigError, match=f"^{line}"):
        tls.build_server_options(settings.tls_files)


def test_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="set both of them, or none"):
        load_settings(_env_file=None, tools_server_tls_cert_file="cert.pem")
