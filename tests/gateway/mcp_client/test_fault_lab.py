"""Tests with misbehaving MCP servers of the modern and the legacy protocol."""

import asyncio
import gc
import json
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.domain.messages import Principal
from gateway.mcp_client.server_config import ServerConfig
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.test_toolbox import (
    ERAS,
    call_tool,
    connect_toolbox,
    get_text,
    run_server_process,
    wait_for_hanging_calls,
)
from tests.stack import find_free_port, serve_asgi, serve_gateway

Send = Callable[[Any], Awaitable[None]]


@pytest.fixture(params=ERAS, ids=list(ERAS))
def modern(request: pytest.FixtureRequest) -> bool:
    return ERAS[request.param]


class FaultyServer:
    """A proxy of the trial server that answers calls with faults."""

    def __init__(self, trial: TrialServer, *, modern: bool) -> None:
        self._inner = trial.create_app(modern=modern)
        self.fault: str | None = None
        self.faulty_answers = 0

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or self.fault is None:
            await self._inner(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if b'"tools/call"' not in body:
            await self._inner(scope, _replay_body(body, receive), send)
            return
        self.faulty_answers += 1
        await self._send_fault(json.loads(body)["id"], send)

    async def _send_fault(self, call_id: Any, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        result: Any = {"content": [{"type": "text", "text": "x" * 15_000_000}], "resultType": "complete"}
        match self.fault:
            case "500":
                await send(head | {"status": 500})
                await send({"type": "http.response.body", "body": b"Internal Server Error"})
            case "not json":
                await send(head)
                await send({"type": "http.response.body", "body": b"{this is no JSON"})
            case "no json-rpc":
                await send(head)
                await send({"type": "http.response.body", "body": b'{"hello": "world"}'})
            case "another's id":
                await send(head)
                payload = json.dumps({"jsonrpc": "2.0", "id": 987_654, "result": {"content": []}}).encode()
                await send({"type": "http.response.body", "body": payload})
            case "empty":
                await send(head)
                await send({"type": "http.response.body", "body": b""})
            case "trickle":
                await send(head | {"headers": [(b"content-type", b"text/event-stream")]})
                for _ in range(600):
                    await send({"type": "http.response.body", "body": b": still there\n", "more_body": True})
                    await asyncio.sleep(0.05)
            case "oversized":
                await send(head)
                payload = json.dumps({"jsonrpc": "2.0", "id": call_id, "result": result}).encode()
                await send({"type": "http.response.body", "body": payload})
            case _:
                raise AssertionError(self.fault)


def _replay_body(body: bytes, receive: Any) -> Any:
    sent = False

    async def receive_again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _list_tasks() -> set[asyncio.Task[Any]]:
    """Return running tasks except those of the test's own HTTP servers."""
    return {task for task in asyncio.all_tasks() if "_shutdown_watcher" not in repr(task.get_coro())}


@asynccontextmanager
async def assert_no_leaks() -> AsyncGenerator[None]:
    """Fail if tasks or threads are left at the end."""
    before = _list_tasks()
    yield
    gc.collect()
    async with asyncio.timeout(30):
        while leaked := _list_tasks() - before:
            await asyncio.wait(leaked, timeout=0.1)
    assert threading.active_count() < 60


TIMEOUT_FAULTS = ("no json-rpc", "another's id", "empty", "trickle")
"""Faults that only the call's timeout ends."""


@pytest.mark.parametrize("fault", ["500", "not json", "no json-rpc", "another's id", "empty", "trickle", "oversized"])
async def test_malformed_response_fails_only_its_own_call(modern: bool, fault: str) -> None:
    faulty = FaultyServer(TrialServer(), modern=modern)
    async with assert_no_leaks(), serve_asgi(faulty) as address:
        server = ServerConfig(name="t", url=f"{address}/mcp", prefix="")
        async with connect_toolbox(server, tool_timeout=1.5 if fault in TIMEOUT_FAULTS else 30) as toolbox:
            faulty.fault = fault
            async with asyncio.timeout(30):
                result = await call_tool(toolbox, "picture")
            assert faulty.faulty_answers
            assert len(get_text(result)) < 40_000
            assert result.outcome in (("ok",) if fault == "oversized" else ("error", "unknown"))
            faulty.fault = None
            toolbox._timeout = 30.0  # the next call must work, also on a stalled machine
            await eventually(lambda: toolbox.list_server_statuses()[0].state == "up")
            assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"


@pytest.mark.parametrize("fault", ["500", "not json"])
async def test_unreadable_response_makes_the_outcome_unknown(modern: bool, fault: str) -> None:
    faulty = FaultyServer(TrialServer(), modern=modern)
    async with (
        serve_asgi(faulty) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        faulty.fault = fault
        result = await call_tool(toolbox, "picture")
    assert (result.outcome, faulty.faulty_answers) == ("unknown", 1)
    assert "may or may not have taken effect" in get_text(result)
    assert "validation error" not in get_text(result)


async def test_lost_connection_fails_reads_and_makes_writes_unknown(modern: bool) -> None:
    port = find_free_port()
    server = ServerConfig(name="t", url=f"http://127.0.0.1:{port}/mcp", prefix="")
    async with connect_toolbox(server, connect_timeout=0.1) as toolbox:
        async with run_server_process(port, modern) as victim:
            await eventually(lambda: toolbox.find_tool("hang_read") is not None)
            calls = [asyncio.create_task(call_tool(toolbox, name)) for name in ("hang_read", "hang_write")]
            await wait_for_hanging_calls(toolbox, "hanging", 2)
            victim.kill()
            victim.wait()
            async with asyncio.timeout(30):
                results = await asyncio.gather(*calls)
        assert [result.outcome for result in results] == ["error", "unknown"]
        assert "not reachable" in get_text(results[0])


async def test_unresponsive_server_does_not_block_other_servers() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    async with assert_no_leaks(), serve_asgi(TrialServer().create_app()) as address:
        servers = [ServerConfig(name="mute", url=url), ServerConfig(name="good", url=f"{address}/mcp")]
        async with connect_toolbox(*servers, connect_timeout=0.1) as toolbox:
            await eventually(lambda: toolbox.list_server_statuses()[1].state == "up")
            assert toolbox.list_server_statuses()[0].state == "connecting"
            assert get_text(await call_tool(toolbox, "good_echo", text="hi")) == "hi"
    listener.close()


async def test_two_hundred_concurrent_calls_get_their_own_results(modern: bool) -> None:
    async with (
        assert_no_leaks(),
        serve_asgi(TrialServer().create_app(modern=modern)) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        principals = [Principal(f"user {number}") for number in range(200)]
        calls = [call_tool(toolbox, "echo", principal=principal, text=principal.user) for principal in principals]
        async with asyncio.timeout(30):
            results = await asyncio.gather(*calls)
    assert [get_text(result) for result in results] == [principal.user for principal in principals]


async def test_turn_uses_reachable_servers_when_others_are_down(
    database_url: str, simulator: Simulator, tmp_path: Any, modern: bool
) -> None:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serve_asgi(TrialServer().create_app(modern=modern))) for _ in range(3)]
        entries = {f"s{number}": {"url": f"{url}/mcp"} for number, url in enumerate(urls)}
        entries |= {f"dead{number}": {"url": f"http://127.0.0.1:{find_free_port()}/mcp"} for number in range(2)}
        (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": entries}))
        async with serve_gateway(database_url, simulator, None, mcp_config=tmp_path / "mcp.json") as gateway:
            prompt = " and ".join(f'call s{n}_echo with {{"text": "from {n}"}}' for n in range(3))
            reply = await gateway.chat(prompt)
            ready = (await gateway.get("/ready")).body
    texts = [call["content"][0]["text"] for call in reply.body["tool_calls"]]
    assert texts == ["from 0", "from 1", "from 2"]
    assert ready["status"] == "degraded"
    assert sorted(server["state"] for server in ready["mcp_servers"]) == ["down", "down", "up", "up", "up"]


async def test_tool_change_during_a_turn_does_not_fail_it(database_url: str, simulator: Simulator) -> None:
    trial = TrialServer()
    async with (
        serve_asgi(trial.create_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
        gateway.stream('call slow with {} and echo with {"text": "hi"}') as stream,
    ):
        async with asyncio.timeout(30):
            await trial.started.wait()
        trial.mcp.remove_tool("echo")
        await trial.add_tool("fresh")
        await eventually(lambda: gateway.state.toolbox.find_tool("fresh") is not None)
        trial.release.set()
        await stream.read_until("turn.completed")
        results = [event.data["outcome"] for event in stream.received_events if event.type == "tool.result"]
    assert results == ["ok", "error"]


async def test_turns_over_a_failing_server_leak_no_tasks(database_url: str, simulator: Simulator) -> None:
    faulty = FaultyServer(TrialServer(), modern=True)
    async with (
        serve_asgi(faulty) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp", tool_timeout=1.0) as gateway,
    ):
        await gateway.chat('call echo with {"text": "hi"}')
        before = len(asyncio.all_tasks())
        for fault in ("500", "not json", "another's id", None):
            faulty.fault = fault
            chats = [gateway.chat('call echo with {"text": "hi"}') for _ in range(10)]
            replies = await asyncio.gather(*chats)
            assert {reply.status for reply in replies} == {200}
        await eventually(lambda: len(asyncio.all_tasks()) <= before + 2)
        await eventually(lambda: gateway.state.turn_service.running_turns == 0)
