"""The command `agent-gateway mcp-stdio` under real stdio hosts."""

import asyncio
import sys
from pathlib import Path

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import TextContent

from tests.auth_helpers import Keyring
from tests.stack import Gateway, find_free_port

pytestmark = pytest.mark.faults
COMMAND = ["-m", "gateway.cli", "mcp-stdio"]


def make_parameters(url: str, folder: Path, *arguments: str, key: str = "") -> StdioServerParameters:
    environment = {"API_KEY": key} if key else {}
    args = [*COMMAND, *arguments, "--url", url]
    return StdioServerParameters(command=sys.executable, args=args, env=environment, cwd=folder)


@pytest.fixture
async def keyring(gateway: Gateway) -> Keyring:
    keyring = Keyring(gateway)
    await keyring.create_key("root", role="admin")
    body = {"name": "few", "tools": [{"tool": "calculator", "name": "sums"}, "add_task"]}
    assert (await keyring.post("root", "/api/v1/toolsets", body)).status == 201
    return keyring


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_host_uses_tools_of_the_gateway_over_stdio(keyring: Keyring, tmp_path: Path, mode: str) -> None:
    url, key = keyring.gateway.base_url, keyring.secrets["root"]
    async with Client(make_parameters(url, tmp_path, "few", key=key), mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"sums", "add_task"}
        results = await asyncio.gather(*(client.call_tool("sums", {"expression": f"{n}+1"}) for n in range(20)))
        texts = [result.content[0].text for result in results if isinstance(result.content[0], TextContent)]
        assert [str(n + 1) in text for n, text in enumerate(texts)] == [True] * 20
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("calculator", {"expression": "1"})


async def test_refused_key_and_absent_gateway_are_errors_of_the_request(keyring: Keyring, tmp_path: Path) -> None:
    for url in (keyring.gateway.base_url, f"http://127.0.0.1:{find_free_port()}"):
        with pytest.raises((MCPError, BaseExceptionGroup)) as caught:
            async with Client(make_parameters(url, tmp_path, key="agw_unknown_key_of_nobody"), mode="legacy"):
                raise AssertionError("connected")
        assert _holds(caught.value, MCPError), caught.value


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
