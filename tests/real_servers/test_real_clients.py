"""Tests of clients too large for the lock of the tests.

`make real-servers` installs them.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.real_servers.test_real_servers import ROOT
from tests.stack import Gateway

PYTHON = ROOT / ".real" / "clients" / "bin" / "python"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs .real/clients: `make real-servers`"),
]


async def run_client(program: Path, *arguments: str, gateway: Gateway) -> str:
    """Run a program, which must succeed, and return its output."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "GATEWAY_URL": gateway.base_url}
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        program,
        *arguments,
        env=environment | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-4_000:]
    return out.decode()


async def test_litellm_gets_an_answer_by_each_provider(gateway: Gateway) -> None:
    out = await run_client(ROOT / "examples" / "litellm_chat.py", "What is 23*19?", gateway=gateway)
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["openai", "anthropic"]
    assert all("437" in line for line in lines), out


async def test_agent_of_pydantic_ai_runs_its_own_tool(gateway: Gateway) -> None:
    program = ROOT / "examples" / "pydantic_ai_agent.py"
    out = await run_client(program, 'call get_weather with {"city": "Oslo"}', gateway=gateway)
    assert "sunny in Oslo" in out
    assert out.endswith("2 requests\n")


async def test_a2a_sdk_of_protocol_0_3_finds_the_agent_by_its_card(gateway: Gateway) -> None:
    program = ROOT / "tests" / "real_servers" / "clients" / "use_a2a_0_3.py"
    result = json.loads(await run_client(program, gateway.base_url, gateway=gateway))
    assert result["version"] == "0.3"
    assert result["kinds"][0] == "task"
    assert {"artifact-update", "status-update"} <= set(result["kinds"])
    assert "437" in result["text"]
    assert (result["got"], result["asked"]) == ("completed", "input-required")
    assert result["answered"] == ["completed", True]
    assert result["codes"] == [-32002, -32001]
