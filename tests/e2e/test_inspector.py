"""The MCP Inspector's command line against the tool server, over HTTP and stdio."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import NODE, needs
from tests.e2e.up import ROOT, running_up

INSPECTOR = NODE / "node_modules" / ".bin" / "mcp-inspector"
pytestmark = needs("@modelcontextprotocol/inspector")


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def inspect(*arguments: str) -> Any:
    """The JSON that the Inspector prints."""
    process = await asyncio.create_subprocess_exec(
        str(INSPECTOR), "--cli", "-q", "--format", "json", *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)["result"]


async def check(*target: str, listed: bool = True) -> None:
    if listed:
        tools = await inspect(*target, "--method", "tools/list")
        assert {"calculator", "web_search", "add_task"} <= {tool["name"] for tool in tools["tools"]}
    call = ("--method", "tools/call", "--tool-name", "calculator", "--tool-args-json", '{"expression": "5*9"}')
    result = await inspect(*target, *call)
    assert result["content"][0]["text"] == "5*9 = 45"
    assert result["structuredContent"] == {"expression": "5*9", "result": 45}


async def test_inspector_lists_and_calls_the_tools_over_http_and_stdio(directory: Path) -> None:
    async with running_up(directory) as up:
        for era in ("legacy", "modern"):
            for url in (up.tools_url, f"{up.base_url}/mcp"):
                # Each is a start of Node: both eras list, both addresses call in both.
                listed = (era == "modern") == (url == up.tools_url)
                await check(url, "--transport", "http", "--protocol-era", era, listed=listed)
        # A host that starts its own tool server shares the running stack's data directory.
        config = directory / "inspector.json"
        environment = {"GATEWAY_DATA_DIR": str(up.data_dir), "PATH": os.environ["PATH"]}
        server = {"command": sys.executable, "args": ["-m", "tools_server.cli", "--stdio"], "env": environment}
        config.write_text(json.dumps({"mcpServers": {"tools": server}}))
        await check("--config", str(config), "--server", "tools", listed=False)
