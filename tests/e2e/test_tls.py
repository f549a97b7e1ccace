"""https, as `agent-gateway up` serves it."""

import io
import ssl
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import aiohttp
import pytest

from gateway.cli.chat import ChatError, ChatTerminal
from tests.certificates import self_signed
from tests.e2e.up import ROOT, command, running_up


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def test_https_serves_requests_and_streams_and_plain_http_is_refused(directory: Path) -> None:
    made = self_signed(directory, password="opens the key")
    trusted = ssl.create_default_context(cafile=str(made.cert))
    settings = made.settings() | {"GATEWAY_TLS_KEY_PASSWORD": "opens the key"}
    async with running_up(directory, trusted=trusted, **settings) as up:
        said = up.output.read_text()
        assert "The agent gateway is ready" in said
        assert f"curl -N https://{up.base_url.removeprefix('https://')}/api/v1/chat/stream" in said
        assert "opens the key" not in said

        health = await up.get("/health")
        assert health.status == 200
        assert health.headers["Strict-Transport-Security"] == "max-age=31536000"

        async with up.stream("What is 23*19?") as stream:
            assert stream.response.content_type == "text/event-stream"
            result = await stream.until("tool.result")
            assert result.data["structured"]["result"] == 437
            await stream.until("turn.completed")

        plain = up.base_url.replace("https://", "http://")
        with pytest.raises(aiohttp.ClientConnectionError):
            await up.session.get(f"{plain}/health")
        stranger = ChatTerminal(up.base_url, api_key=None, model=None, output=io.StringIO(), notes=io.StringIO())
        with pytest.raises(ChatError, match="is not trusted: self-signed certificate"):
            await stranger.send_prompt("Hello")
        spoken = subprocess.run(
            command("chat", "What is 6*7?"), cwd=ROOT, env=up.environment, capture_output=True, text=True, timeout=90
        )
        assert "42" in spoken.stdout, spoken.stderr
