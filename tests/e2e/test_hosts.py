"""Tests of MCP hosts behind mcp-remote or the Claude Desktop bundle."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mcp import Client, StdioServerParameters

from tests.e2e.node import NODE, require_node
from tests.e2e.running_stack import ROOT
from tests.stack import Gateway


@require_node("mcp-remote")
async def test_mcp_remote_connects_a_stdio_host_to_gateway_and_tool_server(
    gateway: Gateway, open_tools_url: str, tmp_path: Path
) -> None:
    for url, tool in ((f"{gateway.base_url}/mcp", "ask_agent"), (open_tools_url, "add_task")):
        remote = StdioServerParameters(
            command="node",
            args=[str(NODE / "node_modules" / ".bin" / "mcp-remote"), url, "--silent"],
            env={"MCP_REMOTE_CONFIG_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
        )
        async with asyncio.timeout(90), Client(remote) as client:
            assert tool in {listed.name for listed in (await client.list_tools()).tools}
            result = await client.call_tool("calculator", {"expression": "5*9"})
            assert result.structured_content == {"expression": "5*9", "result": 45}


@require_node("@anthropic-ai/mcpb")
async def test_bundle_is_valid_and_its_server_runs() -> None:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as directory:
        path = Path(directory)
        path.chmod(0o755)
        build = [sys.executable, str(ROOT / "packaging" / "mcpb.py"), directory]
        result = subprocess.run(
            build, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        with zipfile.ZipFile(path / "tools-server.mcpb") as bundle:
            bundle.extractall(path / "unpacked")
        manifest = json.loads((path / "unpacked" / "manifest.json").read_text())
        assert (path / "unpacked" / manifest["server"]["entry_point"]).exists()
        # Claude Desktop runs it with uv, which installs the dependencies; here they are installed.
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "tools_server.cli", "--stdio"],
            cwd=path / "unpacked",
            env={"GATEWAY_DATA_DIR": str(path / "data"), "TAVILY_API_KEY": "", "PATH": os.environ["PATH"]},
        )
        async with asyncio.timeout(90), Client(server) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {tool["name"] for tool in manifest["tools"]}
            while (await client.call_tool("list_tasks", {})).is_error:
                await asyncio.sleep(0.1)  # the server creates its schema after it starts
            result = await client.call_tool("add_task", {"title": "buy milk"})
            assert not result.is_error
