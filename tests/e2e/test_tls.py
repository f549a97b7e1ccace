"""Test of https as served by `agent-gateway up`."""

import asyncio
import contextlib
import io
import ssl
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.cli.chat import ChatError, ChatTerminal
from gateway_runtime.connections.limits import MAX_SOURCE_CONNECTIONS
from tests.certificates import create_certificate
from tests.e2e.running_stack import ROOT, gateway_command, run_stack


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def test_https_serves_requests_and_streams_and_plain_http_is_refused(directory: Path) -> None:
    certificate = create_certificate(directory, password="key-password")
    client_context = ssl.create_default_context(cafile=str(certificate.cert))
    settings: dict[str, Any] = certificate.to_settings() | {"GATEWAY_TLS_KEY_PASSWORD": "key-password"}
    async with run_stack(directory, trusted=client_context, **settings) as stack:
        output = stack.output.read_text()
        assert "The agent gateway is ready" in output
        assert f"curl -N https://{stack.base_url.removeprefix('https://')}/api/v1/chat/stream" in output
        assert "key-password" not in output

        health = await stack.get("/health")
        assert health.status == 200
        assert health.headers["Strict-Transport-Security"] == "max-age=31536000"

        async with stack.stream("What is 23*19?") as stream:
            assert stream.response.content_type == "text/event-stream"
            result = await stream.read_until("tool.result")
            assert result.data["structured"]["result"] == 437
            await stream.read_until("turn.completed")

        plain_url = stack.base_url.replace("https://", "http://")
        with pytest.raises(aiohttp.ClientConnectionError):
            await stack.session.get(f"{plain_url}/health")
        untrusting_terminal = ChatTerminal(
            stack.base_url, api_key=None, model=None, output=io.StringIO(), notes=io.StringIO()
        )
        with pytest.raises(ChatError, match="is not trusted: self-signed certificate"):
            await untrusting_terminal.send_prompt("Hello")
        chat = subprocess.run(
            gateway_command("chat", "What is 6*7?"),
            cwd=ROOT,
            env=stack.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert "42" in chat.stdout, chat.stderr


@pytest.mark.faults
async def test_silent_tls_connections_count_from_their_acceptance_at_both_servers(directory: Path) -> None:
    """The clients never begin a handshake."""
    certificate = create_certificate(directory)
    context = ssl.create_default_context(cafile=str(certificate.cert))
    settings: dict[str, Any] = certificate.to_settings() | certificate.to_settings("TOOLS_SERVER")
    settings |= {"SSL_CERT_FILE": str(certificate.cert), "MAX_SOURCE_CONNECTIONS": "30"}
    settings["MCP_CONFIG"] = str(directory / "mcp.json")
    (directory / "mcp.json").write_text('{"mcpServers": {}}')
    async with run_stack(directory, trusted=context, **settings) as stack:
        limits = {urlsplit(stack.base_url).port or 0: 30, stack.tools_port: MAX_SOURCE_CONNECTIONS}
        for port, limit in limits.items():
            async with contextlib.AsyncExitStack() as connections, asyncio.timeout(100):
                readers = list[asyncio.StreamReader]()
                for _ in range(limit + 5):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    connections.callback(writer.close)
                    readers.append(reader)
                assert await readers[-1].read() == b""  # refused at once
                assert [reader for reader in readers if not reader.at_eof()]
                assert {await reader.read() for reader in readers} == {b""}  # after the deadline of handshakes
        assert (await stack.get("/health")).status == 200
        async with stack.session.get(f"https://127.0.0.1:{stack.tools_port}/health") as response:
            assert response.status == 200
