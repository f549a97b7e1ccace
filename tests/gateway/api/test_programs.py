"""Programs that the model writes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from mcp import MCPError

from gateway.simulator import Fault, Simulator
from tests.effect_server import serve_effects
from tests.gateway.api.test_questions import get_only_event, read_to_end, send_answer
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import Gateway, Reply, serve_gateway

pytestmark = pytest.mark.faults

SUM = "Add up the numbers in the titles of my pending tasks"


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5, code_timeout=2.0) as gateway:
        yield gateway


def write_programs(gateway: Gateway, *programs: str, match: str = "Run it") -> None:
    """Let the simulated model write programs, one a step."""
    calls = [{"name": "run_python", "arguments": json.dumps({"code": program})} for program in programs]
    for call in calls:
        gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match=match))


async def run(gateway: Gateway, *programs: str, **options: Any) -> Reply:
    write_programs(gateway, *programs)
    return await gateway.chat_stream("Run it", code="only", **options)


def list_results(reply: Reply) -> list[tuple[str, str]]:
    """Return outcome and text of each program of a turn."""
    programs = {call["call_id"] for call in reply.get_event_data("tool.call") if call["tool"] == "run_python"}
    results = [result for result in reply.get_event_data("tool.result") if result["call_id"] in programs]
    return [(result["outcome"], result["content"][0]["text"]) for result in results]


async def test_numbers_of_several_tasks_are_added_by_one_program(gateway: Gateway) -> None:
    for title in ("Buy 3 eggs", "Buy 14 apples", "Call Ann"):
        await gateway.chat_stream(f"Add a task: {title}")
    reply = await gateway.chat_stream(SUM, code="only")
    calls = reply.get_event_data("tool.call")
    assert [call["tool"] for call in calls] == ["run_python", "list_tasks", "calculator", "calculator"]
    assert {call.get("parent_call_id") for call in calls} == {None, calls[0]["call_id"]}
    assert list_results(reply) == [("ok", "2 numbers\n17")]
    assert "add up to 17" in reply.text


async def test_program_waits_for_an_approval_and_continues_behind_its_answered_calls(gateway: Gateway) -> None:
    program = (
        'a = await calculator(expression="20+1")\n'
        "task = await add_task(title=f\"Task {a['result']}\")\n"
        'await delete_task(task_id=task["task"]["id"])\n'
        'task["task"]["title"]'
    )
    write_programs(gateway, program)
    reply = await gateway.chat_stream("Run it", code="only", approval="destructive")
    assert reply.get_event_data("input.required"), list_results(reply)
    question = get_only_event(reply.events, "input.required")
    assert question["call_id"].endswith(".3")
    turn_id = reply.headers["x-turn-id"]
    await send_answer(gateway, turn_id, question["input_id"], "accept")
    events = await read_to_end(gateway, turn_id)
    calls = [event.data["tool"] for event in events if event.type == "tool.call"]
    assert calls == ["run_python", "calculator", "add_task", "delete_task"]
    assert ("ok", "Task 21") in list_results(Reply(200, {}, events))


async def test_denied_call_raises_in_the_program(gateway: Gateway) -> None:
    program = 'try:\n    await add_task(title="x")\nexcept RuntimeError:\n    print("denied")'
    write_programs(gateway, program)
    reply = await gateway.chat_stream("Run it", code="only", approval="always")
    assert reply.get_event_data("input.required"), list_results(reply)
    question = get_only_event(reply.events, "input.required")
    turn_id = reply.headers["x-turn-id"]
    await send_answer(gateway, turn_id, question["input_id"], "decline")
    assert list_results(Reply(200, {}, await read_to_end(gateway, turn_id))) == [("ok", "denied")]


async def test_variables_live_on_in_the_turn_also_after_a_wait_for_a_person(gateway: Gateway) -> None:
    first = 'import random\nx = (await calculator(expression="6*7"))["result"]\ny = random.random()\ny'
    reply = await run(gateway, first, "(x, y)")
    (_, drawn), (_, shown) = list_results(reply)
    assert json.loads(shown) == [42, float(drawn)]
    second = 'task = await add_task(title="one")\nawait delete_task(task_id=task["task"]["id"])\n(x, y)'
    write_programs(gateway, first, second)
    reply = await gateway.chat_stream("Run it", code="only", approval="destructive")
    turn_id = reply.headers["x-turn-id"]
    assert reply.get_event_data("input.required"), list_results(reply)
    question = get_only_event(reply.events, "input.required")
    await send_answer(gateway, turn_id, question["input_id"], "accept")
    (_, drawn), (_, shown) = list_results(Reply(200, {}, await read_to_end(gateway, turn_id)))
    assert json.loads(shown) == [42, float(drawn)]


async def test_program_with_wrong_types_is_told_so_before_anything_runs(gateway: Gateway) -> None:
    reply = await run(gateway, 'await add_task(title="x")\nawait calculator(expression=5)')
    ((outcome, text),) = list_results(reply)
    assert outcome == "error"
    assert text.startswith("The program was not run:")
    assert [call["tool"] for call in reply.get_event_data("tool.call")] == ["run_python"]


async def test_gathered_calls_are_all_made_and_answered_in_their_order(gateway: Gateway) -> None:
    program = (
        "import asyncio\n"
        'found = await asyncio.gather(*[calculator(expression=f"{n}*{n}") for n in range(20)])\n'
        '[item["result"] for item in found]'
    )
    reply = await run(gateway, program)
    assert list_results(reply) == [("ok", json.dumps([n * n for n in range(20)]).replace(" ", ""))]
    assert len(reply.get_event_data("tool.call")) == 21


async def test_failed_call_raises_in_the_program(gateway: Gateway) -> None:
    program = 'try:\n    await calculator(expression="1/0")\nexcept RuntimeError as error:\n    print("failed:", error)'
    ((outcome, text),) = list_results(await run(gateway, program))
    assert outcome == "ok"
    assert text.startswith("failed: ")


ESCAPES = {
    "import": "import subprocess\nsubprocess.run(['id'])",
    "environment": "import os\nos.environ['PATH']",
    "file": "from pathlib import Path\nPath('/etc/passwd').read_text()",
    "dunder walk": "().__class__.__base__.__subclasses__()",
    "builtins": "__builtins__.__import__('os').system('id')",
    "huge allocation": "x = 'a' * 10**10",
    "growing list": "x = [0]\nwhile True:\n    x = x + x",
    "endless loop": "while True:\n    pass",
    "deep recursion": "def f(n: int) -> int:\n    return f(n + 1)\nf(0)",
    "giant output": "while True:\n    print('x' * 10_000)",
    "big number": "x = 10 ** 10 ** 10",
    "forged tool": "await delete_everything(id=1)",
    "forged dispatch": "import asyncio\nawait globals()['add_task'](title='x')",
    "own tool": "await run_python(code='1')",
    "positional": "await calculator('1+1')",
    "endless sleep": "import asyncio\nwhile True:\n    await asyncio.sleep(1000)",
    "flood of calls": "while True:\n    await calculator(expression='1')",
}


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES.keys())
async def test_program_cannot_leave_the_sandbox_or_its_limits(gateway: Gateway, program: str) -> None:
    reply = await run(gateway, program)
    ((outcome, text),) = list_results(reply)
    assert outcome == "error"
    assert "root:" not in text
    assert "uid=" not in text
    assert len(text) < 33_000
    assert reply.is_done
    assert reply.get_event_data("turn.completed")
    assert list_results(await run(gateway, "1 + 1")) == [("ok", "2")]  # the next program gets a sandbox


async def test_long_output_is_cut_with_a_note(gateway: Gateway) -> None:
    ((outcome, text),) = list_results(await run(gateway, "print('x' * 100_000)"))
    assert outcome == "ok"
    assert text.endswith("characters were cut: print less]")
    assert len(text) < 33_000


@pytest.mark.faults
@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("x = 'a' * 40_000_000\nprint(len(x))", "40000000"),
        ("x: list = []\nfor _ in range(3000):\n    x = [x]\nx", "nested too deeply"),
        ("'" + "(" * 50_000, "missing closing quote"),
    ],
    ids=["variables too large to save", "value too deep to show", "long line with an error"],
)
async def test_large_values_of_a_program_fail_no_turn(gateway: Gateway, program: str, shown: str) -> None:
    reply = await run(gateway, program, "1 + 1")
    (_, text), following = list_results(reply)
    assert shown in text
    assert following == ("ok", "2")
    assert reply.get_event_data("turn.completed")


async def test_disconnect_cancels_the_program_and_its_call(gateway: Gateway) -> None:
    write_programs(gateway, "while True:\n    pass")
    async with gateway.stream("Run it", code="only") as stream:
        await stream.read_until("tool.call")
        turn_id = stream.response.headers["x-turn-id"]
    async with asyncio.timeout(10):
        events = await read_to_end(gateway, turn_id)
    assert events[-2].type == "turn.cancelled"


async def test_programs_need_a_request_or_more_tools_than_fit(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        for options in ({}, {"code": "off"}, {"code": "auto"}):
            reply = await gateway.chat_stream("Hello", **options)
            assert "run_python" not in reply.get_event_data("turn.started")[0]["tools"]
        reply = await gateway.chat_stream("Hello", code="only")
        assert reply.get_event_data("turn.started")[0]["tools"] == ["run_python"]
        refused = await gateway.chat_stream("Hello", code="sometimes")
        assert (refused.status, refused.body["error"]["param"]) == (422, "code")
    settings = {"tool_token_budget": 500, "code_stub_chars": 500}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        tools = (await gateway.chat_stream("Hello")).get_event_data("turn.started")[0]["tools"]
        assert tools[-2:] == ["find_tools", "run_python"]
        reply = await gateway.chat_stream(SUM, code="only")
        assert [call["tool"] for call in reply.get_event_data("tool.call")][:2] == ["find_tools", "find_tools"]
        assert "add up to 0" in reply.text
    async with serve_gateway(database_url, simulator, tools_url, tool_token_budget=1_000) as gateway:
        reply = await gateway.chat_stream(SUM)  # some functions are tools of the request, and others are declared
        assert [call["tool"] for call in reply.get_event_data("tool.call")] == ["run_python", "list_tasks"]
        assert "add up to 0" in reply.text


async def test_tools_of_the_client_are_no_functions(gateway: Gateway) -> None:
    tool = {"type": "function", "function": {"name": "open_door", "parameters": {"type": "object"}}}
    write_programs(gateway, "await open_door()")
    reply = await gateway.chat("Run it", code="only", tools=[tool, "calculator"])
    (call,) = reply.body["tool_calls"]
    assert (call["tool"], call["outcome"]) == ("run_python", "error")
    assert "open_door" in call["content"][0]["text"]


async def test_other_formats_get_programs_only_on_request(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    settings = {"tool_token_budget": 500}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        await gateway.chat_stream("Add a task: Buy 3 eggs")
        body = {"messages": [{"role": "user", "content": SUM}]}
        plain = await gateway.post("/v1/chat/completions", body)
        assert plain.body["x_gateway"]["tool_calls"]
        assert "run_python" not in {call["tool"] for call in plain.body["x_gateway"]["tool_calls"]}
        asked = await gateway.post("/v1/chat/completions", {**body, "x_gateway": {"code": "only"}})
        assert "add up to 3" in asked.body["choices"][0]["message"]["content"]
        response = await gateway.post("/v1/responses", {"input": SUM, "x_gateway": {"code": "only"}})
        names = [item["name"] for item in response.body["output"] if item["type"] == "mcp_call"]
        assert names[-3:] == ["run_python", "list_tasks", "calculator"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_host_in_code_mode_sees_programs_in_place_of_tools(gateway: Gateway, mode: str) -> None:
    await gateway.chat_stream("Add a task: Buy 3 eggs")
    async with connect_host(gateway, mode, path="/mcp?mode=code") as host:
        listed = {tool.name: tool for tool in (await host.list_tools()).tools}
        assert set(listed) == {"run_python", "ask_agent"}
        assert "async def list_tasks(" in str(listed["run_python"].description)
        code = 'print(len((await list_tasks())["tasks"]))\n(await calculator(expression="6*7"))["result"]'
        result = await host.call_tool("run_python", {"code": code})
        assert not result.is_error
        assert [block.text for block in result.content] == ["1\n42"]
        wrong = await host.call_tool("run_python", {"code": "await calculator()"})
        assert wrong.is_error
        assert "missing-argument" in wrong.content[0].text
    async with connect_host(gateway, mode) as host:
        assert "run_python" not in {tool.name for tool in (await host.list_tools()).tools}
        with pytest.raises(MCPError, match="Unknown tool"):
            await host.call_tool("run_python", {"code": "1"})


async def test_platform_without_a_sandbox_offers_no_programs_and_tells_admins(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sandbox.program._is_installed", lambda: False)
    reply = await gateway.chat_stream("Hello", code="only")
    assert "run_python" not in reply.get_event_data("turn.started")[0]["tools"]
    programs = (await gateway.get("/ready")).body["programs"]
    assert programs["ok"] is False
    assert "pydantic-monty" in programs["reason"]


async def test_fork_has_the_variables_of_taken_programs_without_their_calls(
    database_url: str, simulator: Simulator
) -> None:
    async with serve_effects() as effects, serve_gateway(database_url, simulator, effects.url) as gateway:
        first = await run(gateway, 'paid = await pay(order="1")\nlen(paid)')
        assert list_results(first)[0][0] == "ok"
        write_programs(gateway, 'paid["result"]', match="again")
        fork = await gateway.post(
            f"/api/v1/turns/{first.headers['x-turn-id']}/fork", {"after_step": 1, "message": "Run it again"}
        )
        results = list_results(Reply(200, {}, await read_to_end(gateway, fork.body["turn_id"])))
        assert results[-1] == ("ok", "Paid 1.")
        assert effects.payments == {"1": 1}
