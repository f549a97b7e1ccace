"""Test of the MCP Inspector's command line over HTTP and stdio."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import NODE, require_node
from tests.e2e.running_stack import ROOT, run_stack

INSPECTOR = NODE / "node_modules" / ".bin" / "mcp-inspector"
pytestmark = require_node("@modelcontextprotocol/inspector")


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def run_inspector(*arguments: str) -> Any:
    """Run the Inspector and return the result in its JSON output."""
    process = await asyncio.create_subprocess_exec(
        str(INSPECTOR),
        "--cli",
        "-q",
        "--format",
        "json",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)["result"]


async def check_target(*target: str, lists_tools: bool = True) -> None:
    if lists_tools:
        tools = await run_inspector(*target, "--method", "tools/list")
        assert {"calculator", "web_search", "add_task"} <= {tool["name"] for tool in tools["tools"]}
    call = ("--method", "tools/call", "--tool-name", "calculator", "--tool-args-json", '{"expression": "5*9"}')
    result = await run_inspector(*target, *call)
    assert result["content"][0]["text"] == "5*9 = 45"
    assert result["structuredContent"] == {"expression": "5*9", "result": 45}


async def test_inspector_lists_and_calls_the_tools_over_http_and_stdio(directory: Path) -> None:
    async with run_stack(directory) as stack:
        for era in ("legacy", "modern"):
            for url in (stack.tools_url, f"{stack.base_url}/mcp"):
                # Node starts slowly, so each protocol lists at one address only.
                lists_tools = (era == "modern") == (url == stack.tools_url)
                await check_target(url, "--transport", "http", "--protocol-era", era, lists_tools=lists_tools)
        # A host that starts its own tool server shares the running stack's data directory.
        config = directory / "inspector.json"
        environment = {"GATEWAY_DATA_DIR": str(stack.data_dir), "PATH": os.environ["PATH"]}
        server = {"command": sys.executable, "args": ["-m", "tools_server.cli", "--stdio"], "env": environment}
        config.write_text(json.dumps({"mcpServers": {"tools": server}}))
        await check_target("--config", str(config), "--server", "tools", lists_tools=False)
        bridge = {"command": sys.executable, "args": ["-m", "gateway.cli", "mcp-stdio", "--url", stack.base_url]}
        config.write_text(json.dumps({"mcpServers": {"gateway": bridge}}))
        await check_target("--config", str(config), "--server", "gateway", lists_tools=False)
