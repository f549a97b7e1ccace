"""Sampling and roots of MCP servers during turns."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from mcp import MCPError

from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.gateway.api.test_questions import get_only_event, read_to_end, send_answer
from tests.gateway.mcp_client.sampling_server import SamplingServer
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import Gateway, Reply, serve_asgi, serve_gateway

eras = pytest.mark.parametrize("modern", [True, False], ids=["modern-server", "legacy-server"])
ROOT = "file:///srv/project"


class Sampled:
    """A gateway with a sampling server."""

    def __init__(self, gateway: Gateway, server: SamplingServer) -> None:
        self.gateway, self.server = gateway, server

    async def call(self, tool: str, arguments: Any = None, **body: Any) -> Reply:
        """Run a turn whose model calls a tool of the server."""
        self.plan_call(tool, arguments)
        return await self.gateway.chat_stream("Please do it", **body)

    def plan_call(self, tool: str, arguments: Any = None) -> None:
        calls = [{"name": f"s_{tool}", "arguments": arguments or {}}]
        self.gateway.simulator.faults.add_faults(Fault(kind="tool_calls", match="Please do it", calls=calls))

    @property
    def prompts(self) -> list[Any]:
        """The first messages of the model calls that the server asked for."""
        requests = [request["messages"] for request in self.gateway.simulator.requests]
        return [messages for messages in requests if "Please do it" not in json.dumps(messages)]


@asynccontextmanager
async def serve_sampling(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, entry: Any, **settings: Any
) -> AsyncGenerator[Sampled]:
    server, file = SamplingServer(), tmp_path / "mcp.json"
    async with serve_asgi(server.create_app(modern=modern)) as url:
        file.write_text(json.dumps({"mcpServers": {"s": {"url": f"{url}/mcp", **entry}}}))
        own: dict[str, Any] = {"mcp_config": file, "gateway_data_dir": tmp_path, "heartbeat_seconds": 0.5, **settings}
        async with serve_gateway(database_url, simulator, None, **own) as gateway:
            await eventually(lambda: gateway.state.toolbox.list_server_statuses()[0].state == "up")
            yield Sampled(gateway, server)


@eras
async def test_server_gets_an_answer_of_the_turns_model_which_the_turn_pays(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, db: asyncpg.Connection
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}) as sampled:
        reply = await sampled.call("summarize", {"prompt": "Tell me of whales", "max_tokens": 100_000})
        assert "summary: You wrote: 'Tell me of whales'" in str(get_only_event(reply.events, "tool.result"))
        (messages,) = sampled.prompts
        assert [message["content"] for message in messages] == ["Summarize.", "Tell me of whales"]
        sampling = get_only_event(reply.events, "sampling.completed")
        assert sampling["server"] == "s"
        own = [event.data["usage"]["total_tokens"] for event in reply.events if event.type == "step.completed"]
        end = get_only_event(reply.events, "turn.completed")
        assert end["usage"]["total_tokens"] == sum(own) + sampling["usage"]["total_tokens"]
        assert sampling["usage"]["total_tokens"] > 0
        limits = [
            request.get("max_completion_tokens") for request in simulator.requests if len(request["messages"]) == 2
        ]
        assert 4_096 in limits
        stored = await db.fetchval("SELECT (usage->>'total_tokens')::int FROM turns")
        assert stored == end["usage"]["total_tokens"]


@eras
async def test_sampling_is_off_by_default(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {}) as sampled:
        reply = await sampled.call("summarize", {"prompt": "x"})
        assert get_only_event(reply.events, "tool.result")["outcome"] == "error"
        assert sampled.prompts == []
        assert all(declared.sampling is None for declared in sampled.server.capabilities)


@eras
async def test_person_approves_each_model_call_of_a_server_that_must_ask(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "ask"}) as sampled:
        gateway = sampled.gateway
        for action, outcome in (("decline", "denied" if modern else "error"), ("accept", "ok")):
            sampled.plan_call("summarize", {"prompt": "Tell me of whales"})
            async with gateway.stream("Please do it") as stream:
                question = (await stream.read_until("input.required")).data
                turn_id = stream.response.headers["x-turn-id"]
                assert question["kind"] == "approval"
                assert "server s use the model" in question["message"]
                assert "Tell me of whales" in question["message"]
                before = len(sampled.prompts)
                if modern:  # it waits as rows alone
                    await eventually(lambda: not gateway.state.turn_service.running_turns)
                edited = await send_answer(gateway, turn_id, question["input_id"], "accept", {"arguments": {}})
                assert edited.status == 422
                assert (await send_answer(gateway, turn_id, question["input_id"], action)).status == 200
                events = await read_to_end(gateway, turn_id)
            assert get_only_event(events, "tool.result")["outcome"] == outcome
            assert len(sampled.prompts) - before == (action == "accept")


@eras
async def test_server_that_asks_for_ever_is_stopped(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    settings = {"mcp_sampling_max_calls": 3}
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}, **settings) as sampled:
        reply = await sampled.call("insist")
        assert get_only_event(reply.events, "tool.result")["outcome"] == "error"
        assert len(sampled.prompts) == 3


@eras
async def test_model_calls_of_servers_end_with_the_budget(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    settings = {"budget_tokens_per_day": 1}
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}, **settings) as sampled:
        reply = await sampled.call("insist")
        errors = [event.data.get("error") for event in reply.events if event.type == "sampling.completed"]
        assert errors[-1]["code"] == "budget_exceeded"
        assert get_only_event(reply.events, "tool.result")["outcome"] == "error"


@eras
async def test_model_may_call_tools_of_the_server_that_asks(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}) as sampled:
        calls = [{"name": "lookup", "arguments": {"word": "whale"}}]
        simulator.faults.add_faults(Fault(kind="tool_calls", match="find whales", calls=calls))
        reply = await sampled.call("look_up", {"prompt": "find whales"})
        text = get_only_event(reply.events, "tool.result")["content"][0]["text"]
        assert text == 'toolUse lookup {"word": "whale"}'
        (sampling,) = [request for request in simulator.requests if "find whales" in str(request["messages"][0])]
        assert [tool["function"]["name"] for tool in sampling["tools"]] == ["lookup"]


@eras
async def test_cancelled_turn_cancels_the_model_call_of_a_server(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}) as sampled:
        simulator.faults.add_faults(Fault(kind="stall", match="whales"))
        sampled.plan_call("summarize", {"prompt": "whales"})
        async with sampled.gateway.stream("Please do it") as stream:
            await stream.read_until("tool.call")
            await eventually(lambda: simulator.open_streams == 1 and sampled.prompts)
            turn_id = stream.response.headers["x-turn-id"]
            await sampled.gateway.post(f"/api/v1/turns/{turn_id}/cancel", {})
            await eventually(lambda: simulator.open_streams == 0)
            await stream.read_until("turn.cancelled")


async def test_request_beside_a_question_is_approved_with_it(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    entry = {"sampling": "on", "roots": [ROOT]}
    async with serve_sampling(database_url, simulator, tmp_path, True, entry) as sampled:
        reply = await sampled.call("ask_both")
        questions = [event.data for event in reply.events if event.type == "input.required"]
        assert sorted(question["kind"] for question in questions) == ["approval", "approval", "question"]
        turn_id = reply.headers["x-turn-id"]
        for question in questions:
            content = {} if question["kind"] == "question" else None
            answered = await send_answer(sampled.gateway, turn_id, question["input_id"], "accept", content)
            assert answered.status == 200
        result = get_only_event(await read_to_end(sampled.gateway, turn_id), "tool.result")
        text = result["content"][0]["text"]
        assert text.startswith("accept You wrote: 'hello'")
        assert text.endswith(ROOT)


@eras
async def test_server_gets_the_roots_of_its_entry(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, modern, {"roots": [ROOT]}) as sampled:
        reply = await sampled.call("show_roots")
        assert get_only_event(reply.events, "tool.result")["content"][0]["text"] == ROOT


@eras
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_call_of_a_host_does_not_use_the_gateways_model(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, mode: str
) -> None:
    async with (
        serve_sampling(database_url, simulator, tmp_path, modern, {"sampling": "on"}) as sampled,
        connect_host(sampled.gateway, mode) as host,
        asyncio.timeout(40),
    ):
        with contextlib.suppress(MCPError):  # the server's own error, in JSON-RPC
            assert (await host.call_tool("s_summarize", {"prompt": "x"})).is_error
        assert sampled.server.answers == []
        direct = await sampled.gateway.post("/api/v1/tools/s_summarize", {"prompt": "x"})
        assert direct.body["outcome"] == "error"
        assert sampled.prompts == []
