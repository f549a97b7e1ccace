"""Tests of SDKs, of fetch and of Claude Code in Node."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Fault
from tests.e2e.node import NODE, NODE_22, require_node, run_script
from tests.stack import Gateway

CODEX = "@openai/codex-linux-x64"
CLAUDE_CODE = "@anthropic-ai/claude-code-linux-x64"


@require_node("ai")
async def test_vercel_ai_sdk_needs_only_the_base_url(gateway: Gateway) -> None:
    result = await run_script("chat.mjs", gateway.base_url)
    assert "437" in result["plain"]["text"]
    assert (result["plain"]["finish"], result["plain"]["calls"]) == ("stop", 0)
    assert result["plain"]["tokens"] > 0
    assert "437" in result["streamed"]["text"]
    assert (result["streamed"]["finish"], result["streamed"]["tokens"] > 0) == ("stop", True)
    assert (result["tool"]["cities"], result["tool"]["steps"]) == (["Oslo"], 2)
    assert "It snows in Oslo." in result["tool"]["text"]
    assert set(result["object"]) == {"expression", "value"}
    assert result["error"]["status"] == 404
    assert "no-such-model" in result["error"]["message"]


@require_node()
async def test_browser_resumes_the_stream_after_a_disconnect(gateway: Gateway) -> None:
    result = await run_script("browser.mjs", gateway.base_url)
    assert (result["resumed"], result["finish"], result["tools"]) == (True, "stop", ["calculator"])
    assert result["text"] == result["stored"]
    assert "437" in result["text"]
    assert result["refused"] == [422, "invalid_request"]


@require_node("@ai-sdk/openai")
async def test_vercel_ai_sdk_refers_to_stored_items(gateway: Gateway) -> None:
    result = await run_script("openai.mjs", gateway.base_url)
    assert (result["cities"], result["steps"]) == (["Oslo"], 2)
    assert "It snows in Oslo." in result["first"]
    assert "437" in result["second"]


@require_node(CODEX)
async def test_codex_answers_and_runs_its_own_tool(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f"""
        model = "openai/gpt-oss-120b"
        model_provider = "gateway"
        [model_providers.gateway]
        name = "gateway"
        base_url = "{gateway.base_url}/v1"
        env_key = "GATEWAY_KEY"
        wire_api = "responses"
        """
    )
    call = {"name": "exec_command", "arguments": json.dumps({"cmd": "echo out-of-codex-$((6*7))"})}
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match="Print a number"))
    lines = await run_agent(
        str(NODE / "node_modules/.bin/codex"),
        *("exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        "Print a number.",
        cwd=tmp_path,
        CODEX_HOME=str(tmp_path),
        GATEWAY_KEY="none",
    )
    commands = [line["item"] for line in lines if line.get("item", {}).get("type") == "command_execution"]
    assert "out-of-codex-42" in commands[-1]["aggregated_output"]
    assert lines[-1]["type"] == "turn.completed"
    assert any("out-of-codex-42" in str(request["messages"]) for request in gateway.simulator.requests)


@require_node("@a2a-js/sdk")
@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
async def test_a2a_sdk_finds_the_agent_by_its_card(gateway: Gateway, binding: str) -> None:
    result = await run_script("a2a.mjs", gateway.base_url, binding, node=NODE_22)
    assert result["kinds"][0] == "task"
    assert {"artifactUpdate", "statusUpdate"} <= set(result["kinds"])
    assert result["streamed"] == result["got"]["text"]
    assert "437" in result["streamed"]
    assert result["got"]["state"] == "TASK_STATE_COMPLETED"
    assert result["asked"] == "TASK_STATE_INPUT_REQUIRED"
    assert result["answered"] == {"state": "TASK_STATE_COMPLETED", "same": True}
    assert result["listed"] == [True]
    assert [error.partition("Task")[2] for error in result["errors"]] == ["NotCancelableError", "NotFoundError"]


@require_node("a2a-0.3")
async def test_a2a_sdk_of_protocol_0_3_finds_the_agent_by_its_card(gateway: Gateway) -> None:
    result = await run_script("a2a_0_3.mjs", gateway.base_url, node=NODE_22)
    assert result["kinds"][0] == "task"
    assert {"artifact-update", "status-update"} <= set(result["kinds"])
    assert "437" in result["streamed"]
    assert (result["got"], result["asked"]) == ("completed", "input-required")
    assert result["answered"] == ["completed", True]
    assert result["errors"] == ["TaskNotCancelableJSONRPCError", "TaskNotFoundJSONRPCError"]


@require_node("@anthropic-ai/sdk")
async def test_anthropic_sdk_needs_only_the_base_url(gateway: Gateway) -> None:
    result = await run_script("anthropic.mjs", gateway.base_url)
    assert result["whole"]["types"] == result["streamed"]["types"] == ["mcp_tool_use", "mcp_tool_result", "text"]
    assert result["whole"]["stop"] == result["streamed"]["stop"] == "end_turn"
    assert "437" in result["whole"]["text"]
    assert "437" in result["streamed"]["text"]
    assert (result["tool"]["name"], result["tool"]["stop"]) == ("get_weather", "tool_use")
    assert "It snows in Oslo." in result["tool"]["text"]
    assert (result["error"]["name"], result["error"]["status"]) == ("NotFoundError", 404)
    assert result["error"]["id"]


@require_node(CLAUDE_CODE)
async def test_claude_code_answers_and_runs_its_own_tool(gateway: Gateway, tmp_path: Path) -> None:
    call = {"name": "Bash", "arguments": json.dumps({"command": "echo out-of-bash-$((6*7))", "description": "Print"})}
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match="Print a number"))
    lines = await run_agent(
        str(NODE / "node_modules" / CLAUDE_CODE / "claude"),
        *("-p", "Print a number with Bash.", "--output-format", "stream-json", "--verbose", "--allowedTools", "Bash"),
        cwd=tmp_path,
        **dict.fromkeys(("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER"), "1"),
        **dict.fromkeys(("DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING"), "1"),
        ANTHROPIC_BASE_URL=gateway.base_url,
        ANTHROPIC_AUTH_TOKEN="none",
    )
    results = [
        block
        for line in lines
        if line["type"] == "user"
        for block in line["message"]["content"]
        if block["type"] == "tool_result"
    ]
    assert [block["content"] for block in results] == ["out-of-bash-42"]
    assert (lines[-1]["type"], lines[-1]["is_error"]) == ("result", False)
    assert any("out-of-bash-42" in str(request["messages"]) for request in gateway.simulator.requests)


async def run_agent(*command: str, cwd: Path, **settings: str) -> list[Any]:
    """Run an agent in an empty home; return its lines of JSON."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=settings | {"PATH": os.environ["PATH"], "HOME": str(cwd)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, f"{out.decode()[-2_000:]} {err.decode()[-2_000:]}"
    return [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]
