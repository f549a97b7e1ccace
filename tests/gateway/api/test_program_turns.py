"""Programs that wait, several programs of a step, and programs of replays."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

from gateway.simulator import Fault, Simulator
from tests.effect_server import serve_effects
from tests.eventually import eventually
from tests.gateway.api.test_hostile_definitions import serve_hostile
from tests.gateway.api.test_programs import list_results, run, write_programs
from tests.gateway.api.test_questions import get_only_event, read_to_end, send_answer
from tests.gateway.api.test_sign_in import ADA, Serve, protected_server, serve, sign_in
from tests.gateway.mcp_client import dual_era_server
from tests.gateway.mcp_client.hostile_server import HostileServer, make_tool
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, Reply, serve_asgi, serve_gateway

__all__ = ["protected_server", "serve"]

pytestmark = pytest.mark.faults


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5) as gateway:
        yield gateway


def write_step(gateway: Gateway, *programs: str) -> None:
    """Let the simulated model write several programs in one step."""
    calls = [{"name": "run_python", "arguments": json.dumps({"code": program})} for program in programs]
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls, match="Run it"))


async def test_programs_of_a_step_run_one_after_another_with_their_variables(gateway: Gateway) -> None:
    write_step(gateway, 'x: int = 42\nawait calculator(expression="6*7")', "x += 1\nx", "x")
    assert [text for _, text in list_results(await gateway.chat_stream("Run it", code="only"))][1:] == ["43", "43"]


async def test_program_waits_for_an_earlier_one_of_its_step_that_waits_for_a_person(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as first:
        write_step(first, 'title = (await add_task(title="one"))["task"]["title"]', "title + '!'", "title + '?'")
        reply = await first.chat_stream("Run it", code="only", approval="always")
        turn_id = reply.headers["x-turn-id"]
        question = get_only_event(reply.events, "input.required")
        assert reply.get_event_data("tool.result") == []
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5) as second:
        await send_answer(second, turn_id, question["input_id"], "accept")
        results = list_results(Reply(200, {}, await read_to_end(second, turn_id)))
    assert [text for _, text in results][1:] == ["one!", "one?"]


async def test_interrupted_programs_of_a_step_go_on_in_their_order(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    first_program = 'paid = [await pay(order="1"), await pay(order="2")]\nlen(paid)'
    async with serve_effects() as effects, serve_gateway(database_url, simulator, effects.url) as first:
        write_step(first, first_program, "len(paid) + 1")
        async with (
            serve_gateway(database_url, simulator, effects.url, heartbeat_seconds=0.5) as second,
            first.stream("Run it", code="only", on_disconnect="continue") as stream,
        ):
            turn_id = stream.response.headers["x-turn-id"]
            await stream.read_until("tool.result")
            await first.state.stop(0)
            results = list_results(Reply(200, {}, await read_to_end(second, turn_id)))
        assert await db.fetchval("SELECT epoch FROM turns") > 0
        assert effects.payments["1"] == 1
        assert effects.payments["2"] <= 1
    if results[0][0] == "ok":
        assert results == [("ok", "2"), ("ok", "3")]
    else:  # the second payment was interrupted, and its outcome is unknown
        assert "interrupted" in results[0][1]
        assert "`paid` used when not defined" in results[1][1]


async def test_question_in_a_program_is_answered_at_another_worker(database_url: str, simulator: Simulator) -> None:
    async with serve_asgi(dual_era_server.create_app(modern=True)) as url:
        async with serve_gateway(database_url, simulator, f"{url}/mcp") as first:
            write_programs(first, 'print("asking")\nseat = await reserve()\nseat')
            reply = await first.chat_stream("Run it", code="only")
            question = get_only_event(reply.events, "input.required")
            assert question["call_id"].endswith(".1")
        async with serve_gateway(database_url, simulator, f"{url}/mcp", heartbeat_seconds=0.5) as second:
            turn_id = reply.headers["x-turn-id"]
            await send_answer(second, turn_id, question["input_id"], "accept", {"row": "b"})
            results = list_results(Reply(200, {}, await read_to_end(second, turn_id)))
    ((outcome, text),) = results
    assert outcome == "ok"
    assert text.startswith("asking\n")
    assert "reserved in row b" in text


async def test_program_whose_tools_have_changed_is_not_said_to_have_never_run(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("look"), make_tool("change"))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway:
        write_programs(gateway, "print(await look())\nawait change()")
        reply = await gateway.chat_stream("Run it", code="only", approve=["change"], approval="always")
        turn_id = reply.headers["x-turn-id"]
        first = get_only_event(reply.events, "input.required")
        await server.replace_tools(make_tool("change"))
        await eventually(lambda: gateway.state.toolbox.find_tool("look") is None)
        await send_answer(gateway, turn_id, first["input_id"], "accept")
        ((outcome, text),) = list_results(Reply(200, {}, await read_to_end(gateway, turn_id)))
    assert outcome == "error"
    assert text.startswith("The program could not be continued")


async def test_sign_in_stays_a_tool_of_the_model_in_code_mode(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        await sign_in(gateway, ADA)
        tools = (await gateway.chat_stream("Hello", code="only")).get_event_data("turn.started")[0]["tools"]
        assert "vault_sign_in" in tools


@pytest.mark.parametrize("name", ["find_tools", "batch", "run_python"])
async def test_client_s_tool_replaces_the_helper_of_its_name(
    database_url: str, simulator: Simulator, tools_url: str, name: str
) -> None:
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    settings: dict[str, Any] = {"tool_token_budget": 500, "code_stub_chars": 500}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        for options in ({"code": "only"}, {"code": "auto"}):
            offered = [tool, *(spec.name for spec in gateway.state.toolbox.list_specs())]
            started = (await gateway.chat_stream("Hello", tools=offered, **options)).get_event_data("turn.started")[0]
            assert started["tools"].count(name) == 1
            if name == "find_tools":
                assert any("'find_tools' was left out" in warning for warning in started["warnings"])
            sent = [item["function"]["name"] for item in simulator.requests[-1]["tools"]]
            assert len(sent) == len(set(sent))


@pytest.mark.parametrize(
    ("on_new_call", "shown"),
    [("stop", "Not run"), ("run_read_only", "Error: Not run"), ("run", "one two")],
)
async def test_replay_decides_on_each_call_of_a_changed_program(gateway: Gateway, on_new_call: str, shown: str) -> None:
    reply = await run(gateway, 'a = (await add_task(title="one"))["task"]["title"]\na')
    changed = (
        'a = (await add_task(title="one"))["task"]["title"]\nlen((await list_tasks())["tasks"])\n'
        'b = (await add_task(title="two"))["task"]["title"]\nf"{a} {b}"'
    )
    write_programs(gateway, changed)
    body = {"on_new_call": on_new_call}
    replayed = (await gateway.post(f"/api/v1/turns/{reply.headers['x-turn-id']}/replay", body)).body
    calls = [(call["tool"], call.get("source")) for call in replayed["tool_calls"]]
    tasks = (await gateway.chat_stream("call list_tasks {}")).get_event_data("tool.result")[0]["structured"]["tasks"]
    if on_new_call == "stop":
        assert calls == [("run_python", "not_run")]
        assert len(tasks) == 1
    elif on_new_call == "run_read_only":
        assert calls[1:] == [("add_task", "recorded"), ("list_tasks", None), ("add_task", "not_run")]
        assert replayed["finish_reason"] == "new_call"
        assert len(tasks) == 1
    else:
        assert calls[1:] == [("add_task", "recorded"), ("list_tasks", None), ("add_task", None)]
        assert len(tasks) == 2
    assert shown.removeprefix("Error: ") in replayed["tool_calls"][0]["content"][0]["text"]


async def test_cancelled_turn_ends_its_program_in_a_call_and_in_a_loop(database_url: str, simulator: Simulator) -> None:
    catching = (
        "import asyncio\nwhile True:\n    try:\n        await pay(order='1')\n    except BaseException:\n        pass"
    )
    async with serve_effects() as effects, serve_gateway(database_url, simulator, effects.url) as gateway:
        write_programs(gateway, catching)
        async with gateway.stream("Run it", code="only", on_disconnect="continue") as stream, asyncio.timeout(20):
            await stream.read_until("tool.result")
            turn_id = stream.response.headers["x-turn-id"]
            await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
            await stream.read_until("turn.cancelled")
        made = effects.payments.total()
        assert list_results(await run(gateway, "1 + 1")) == [("ok", "2")]
        assert effects.payments.total() == made


async def test_gathered_calls_of_a_program_keep_the_parallel_limit(database_url: str, simulator: Simulator) -> None:
    mcp: MCPServer[Any] = MCPServer("slow", log_level="ERROR")
    running, highest, have_begun = 0, 0, asyncio.Event()

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def look() -> str:
        """Look, which takes a moment once three of them have begun."""
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        if running == 3:
            have_begun.set()
        await have_begun.wait()
        await asyncio.sleep(0.1)
        running -= 1
        return "seen"

    program = "import asyncio\nlen(await asyncio.gather(*[look() for _ in range(7)]))"
    async with (
        serve_asgi(mcp.streamable_http_app(stateless_http=True)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp", tool_parallelism=3) as gateway,
    ):
        assert list_results(await run(gateway, program)) == [("ok", "7")]
        assert highest == 3


async def test_program_ends_with_the_deadline_of_its_turn(database_url: str, simulator: Simulator) -> None:
    mcp: MCPServer[Any] = MCPServer("slow", log_level="ERROR")

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def look() -> str:
        """Look, which never ends."""
        await asyncio.Event().wait()
        return "seen"

    program = "try:\n    await look()\nexcept BaseException:\n    pass\nwhile True:\n    await look()"
    async with (
        serve_asgi(mcp.streamable_http_app(stateless_http=True)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp", agent_timeout=2, code_processes=1) as gateway,
    ):
        async with asyncio.timeout(30):
            reply = await run(gateway, program)
        assert get_only_event(reply.events, "turn.failed")["error"]["code"] == "turn_timeout"
        async with connect_host(gateway, "auto", path="/mcp?mode=code") as host:  # it has no deadline of a turn
            assert get_text(await host.call_tool("run_python", {"code": "1 + 1"})) == "2"


async def test_model_call_after_a_program_is_refused_when_the_budget_is_used_up(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=1) as gateway:
        reply = await run(gateway, 'await calculator(expression="6*7")')
        assert [outcome for outcome, _ in list_results(reply)] == ["ok"]
        assert get_only_event(reply.events, "turn.failed")["error"]["code"] == "budget_exceeded"
