"""Tests of the programs in examples/, run against `agent-gateway up`."""

import asyncio
import importlib.util
import re
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from mcp.server.mcpserver import MCPServer
from pydantic import SecretStr

from gateway.simulator import Simulator
from tests.e2e.node import NODE, require_node, run_program
from tests.e2e.running_stack import ROOT, RunningStack, run_stack
from tests.stack import SECRET, serve_asgi, serve_gateway
from tools_server.config import Settings as ToolsSettings
from tools_server.server import create_app, create_server
from tools_server.tasks.store import TaskStore

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
async def stack() -> AsyncGenerator[RunningStack]:
    """A running stack, connected to the MCP servers of examples/mcp.json."""
    with tempfile.TemporaryDirectory(prefix="agw-examples-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        servers = {"MCP_CONFIG": str(EXAMPLES / "mcp.json"), "PYTHON": sys.executable}
        async with run_stack(Path(directory), **servers) as running:
            yield running


async def run_example(stack: RunningStack | None, name: str, *arguments: str, stdin: str = "") -> str:
    """Run a program, which must succeed, and return its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        cwd=ROOT,
        env=stack.environment | {"GATEWAY_URL": stack.base_url} if stack else None,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_stream_chat_prints_text_tool_calls_and_usage(stack: RunningStack) -> None:
    lines = (await run_example(stack, "stream_chat.py", "What is 23*19?")).splitlines()
    assert lines[:2] == ['-> calculator {"expression": "23*19"}', "<- ok: 23*19 = 437"]
    assert "437" in lines[2]
    assert re.fullmatch(r"\d+ tokens, \d+ ms", lines[3])


async def test_openai_sdk_gets_an_answer_from_gateway_tools(stack: RunningStack) -> None:
    assert "437" in await run_example(stack, "openai_sdk.py", "What is 23*19?")


@pytest.mark.parametrize("name", ["anthropic_sdk.py", "groq_sdk.py", "langchain_chat.py"])
async def test_sdk_gets_an_answer_from_gateway_tools(stack: RunningStack, name: str) -> None:
    assert "437" in await run_example(stack, name, "What is 23*19?")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("openai_sdk.ts", "openai"),
        ("anthropic_sdk.ts", "@anthropic-ai/sdk"),
        ("groq_sdk.ts", "groq-sdk"),
        ("langchain_chat.ts", "@langchain/openai"),
    ],
)
@require_node("openai")
async def test_sdk_of_node_gets_an_answer_from_gateway_tools(
    stack: RunningStack, tmp_path: Path, name: str, package: str
) -> None:
    assert (NODE / "node_modules" / package).exists(), "run `make node`"
    assert "437" in await run_program(name, tmp_path, stack.base_url, "What is 23*19?")


@require_node("@ai-sdk/anthropic")
async def test_each_provider_of_the_ai_sdk_gets_an_answer(stack: RunningStack, tmp_path: Path) -> None:
    out = (await run_program("ai_sdk.ts", tmp_path, stack.base_url, "What is 23*19?")).splitlines()
    assert [line.partition(":")[0] for line in out] == ["openai", "openai-compatible", "anthropic"]
    assert all(re.search(r"437.* \(stop, [1-9]\d* tokens\)$", line) for line in out), out


def check_responses(out: str) -> None:
    assert "Your name is Zoe" in out.splitlines()[-2], out
    assert out.splitlines().count("completed") == 2, out


async def test_responses_of_the_openai_sdk_continue_the_one_before(stack: RunningStack) -> None:
    check_responses(await run_example(stack, "openai_responses.py", "My name is Zoe.", "What is my name?"))


@require_node("openai")
async def test_responses_of_the_openai_sdk_of_node_continue_the_one_before(stack: RunningStack, tmp_path: Path) -> None:
    prompts = ("My name is Zoe.", "What is my name?")
    check_responses(await run_program("openai_responses.ts", tmp_path, stack.base_url, *prompts))


async def test_agent_of_the_agents_sdk_runs_its_own_tool(stack: RunningStack) -> None:
    out = await run_example(stack, "openai_agents.py", 'call get_weather with {"city": "Oslo"}')
    assert "sunny in Oslo" in out


@require_node("@openai/agents")
async def test_agent_of_the_agents_sdk_of_node_runs_its_own_tool(stack: RunningStack, tmp_path: Path) -> None:
    prompt = 'call get_weather with {"city": "Oslo"}'
    assert "sunny in Oslo" in await run_program("openai_agents.ts", tmp_path, stack.base_url, prompt)


async def test_resume_stream_reads_the_remaining_events(stack: RunningStack) -> None:
    out = await run_example(stack, "resume_stream.py")
    before, after = (int(number) for number in re.findall(r"event (\d+)", out))
    assert after > before
    assert " ".join(map(str, range(1, 101))) in out


@pytest.mark.parametrize(("answer", "created"), [("y", True), ("n", False)])
async def test_tool_call_runs_only_if_the_user_approves_it(stack: RunningStack, answer: str, created: bool) -> None:
    title = f"answer {answer}"
    out = await run_example(stack, "approve_tool_call.py", f"Add a task to {title}", stdin=answer)
    assert f'with title "{title}"?' in out
    assert ((title,) in await stack.query("SELECT title FROM tools.tasks")) is created


async def test_custom_mcp_server_is_called_through_the_gateway(stack: RunningStack) -> None:
    out = await run_example(stack, "stream_chat.py", 'call weather_forecast with {"city": "Oslo"}')
    assert "<- ok: Oslo: snow, -4 °C" in out


async def test_mcp_client_lists_all_tools_and_calls_the_agent(stack: RunningStack) -> None:
    tools, calculator_result, answer = (await run_example(stack, "mcp_client.py")).splitlines()
    assert {"calculator", "weather_forecast", "ask_agent"} <= set(tools.removeprefix("tools: ").split(", "))
    assert calculator_result == "calculator: {'expression': '23*19', 'result': 437}"
    assert "42" in answer


@require_node("@modelcontextprotocol/client")
async def test_mcp_client_of_node_lists_all_tools_and_calls_the_agent(stack: RunningStack, tmp_path: Path) -> None:
    out = await run_program("mcp_client.ts", tmp_path, stack.base_url)
    tools, calculator_result, answer = out.splitlines()
    assert {"calculator", "weather_forecast", "ask_agent"} <= set(tools.removeprefix("tools: ").split(", "))
    assert calculator_result == 'calculator: {"expression":"23*19","result":437}'
    assert "42" in answer


@pytest.mark.parametrize(("answer", "state"), [("yes", "ok"), ("no", "denied")])
async def test_a2a_client_streams_a_task_and_answers_its_question(stack: RunningStack, answer: str, state: str) -> None:
    out = await run_example(stack, "a2a_client.py", f"Add a task to a2a {answer}", stdin=f"{answer}\n")
    assert out.splitlines()[-1] == "TASK_STATE_COMPLETED"
    tasks = await stack.query("SELECT title FROM tools.tasks")
    assert ((f"a2a {answer}",) in tasks) is (state == "ok")


@require_node("@a2a-js/sdk")
async def test_a2a_client_of_node_streams_a_task(stack: RunningStack, tmp_path: Path) -> None:
    out = await run_program("a2a_client.ts", tmp_path, stack.base_url)
    assert "437" in out
    assert out.endswith("completed\n")


async def test_chatkit_thread_shows_calls_and_answer(stack: RunningStack) -> None:
    thread, calls, answer = (await run_example(stack, "chatkit_thread.py")).splitlines()
    assert thread.startswith("thread thr_")
    assert calls == "called calculator"
    assert "437" in answer


async def test_custom_tool_runs_without_a_server() -> None:
    assert await run_example(None, "word_count.py", "a b b") == "{'words': 3, 'most_frequent': ['b', 'a']}\n"


async def test_custom_tool_in_the_tool_server_is_offered_by_the_gateway(
    database_url: str, simulator: Simulator
) -> None:
    settings = ToolsSettings(_env_file=None, tools_server_secret=SecretStr(SECRET))  # type: ignore[call-arg]
    store = TaskStore(database_url)
    server = create_server(settings, store)
    register_word_count(server)
    try:
        async with (
            serve_asgi(create_app(server, settings)) as address,
            serve_gateway(database_url, simulator, f"{address}/mcp") as gateway,
        ):
            reply = await gateway.chat_stream('call word_count with {"text": "a b b"}')
            assert reply.get_event_data("tool.result")[0]["structured"] == {"words": 3, "most_frequent": ["b", "a"]}
            server.close_listen_streams()
    finally:
        await store.close()


def register_word_count(server: MCPServer) -> None:
    spec = importlib.util.spec_from_file_location("word_count", EXAMPLES / "word_count.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register_word_count(server)


def test_readme_lists_every_example() -> None:
    listed = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    programs = {path.name for path in EXAMPLES.iterdir() if path.is_file() and path.suffix not in (".in", ".lock")}
    assert listed == programs - {"README.md"}
