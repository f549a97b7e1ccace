"""Tests of MCP hosts of others on the gateway's `/mcp`.

`make real-servers` installs the hosts.
"""

import asyncio
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conftest import ServeSharedGateway
from tests.real_servers.test_real_servers import ROOT
from tests.stack import Gateway

KEY = "key-of-the-hosts"
SCRIPTS = Path(__file__).resolve().parent / "hosts"
HOSTS = {
    "hosts": ("agent_framework", "agno", "fastmcp", "llama_index", "openai_agents", "pydantic_ai"),
    "hosts-sdk-1": ("google_adk", "langchain", "mcp_use", "smolagents", "strands"),
}
"""Hosts by their environment.

It has the second or the first major version of MCP's SDK.
"""
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def list_hosts() -> list[Any]:
    return [
        pytest.param(
            python := ROOT / ".real" / environment / "bin" / "python",
            SCRIPTS / f"use_{name}.py",
            id=name,
            marks=pytest.mark.skipif(not python.exists(), reason=f"needs .real/{environment}: `make real-servers`"),
        )
        for environment, names in HOSTS.items()
        for name in names
    ]


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await serve_shared_gateway(api_key=SecretStr(KEY))


@pytest.mark.parametrize(("python", "script"), list_hosts())
async def test_real_host_lists_and_calls_the_tools_of_the_gateway(gateway: Gateway, python: Path, script: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        python, script, f"{gateway.base_url}/mcp", KEY, stdout=PIPE, stderr=STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    for name in ("add_task", "calculator", "web_search", "ask_agent"):
        assert f"'{name}'" in output
    assert "42" in output.replace("6*7", ""), output


def test_every_script_of_a_host_is_run() -> None:
    names = {f"use_{name}.py" for names in HOSTS.values() for name in names}
    assert {script.name for script in SCRIPTS.glob("*.py")} == names
