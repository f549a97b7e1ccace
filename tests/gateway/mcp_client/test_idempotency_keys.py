"""Tests of the idempotency keys that servers receive."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from starlette.types import Message, Receive, Scope, Send

from gateway.domain.errors import TurnTakenOver
from gateway.mcp_client.server_config import ServerConfig
from gateway.ports.tools import IDEMPOTENCY_KEY_META, IDEMPOTENT_META, ToolCallRequest, make_idempotency_key
from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.mcp_servers import READ_ONLY, TrialServer
from tests.gateway.mcp_client.test_toolbox import (
    ADA,
    ERAS,
    call_tool,
    connect_toolbox,
    get_text,
    run_server_process,
    wait_for_hanging_calls,
)
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway
from tests.tools_server.conftest import make_secret_signer


class BookingServer(TrialServer):
    """A server that records keys and can lose the answers of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[object] = []
        self.answers_to_lose = 0
        self.on_loss: Callable[[], None] = lambda: None
        self.calls_to_hang = 0
        for name, annotations, meta in (
            ("book", None, {IDEMPOTENT_META: True}),
            ("book_hinted", ToolAnnotations(idempotent_hint=True), None),
            ("book_plain", None, {IDEMPOTENT_META: "yes"}),
            ("book_read", READ_ONLY, None),
        ):
            self.mcp.tool(name=name, description="Book a seat.", annotations=annotations, meta=meta)(self._book)

    async def _book(self, seat: str, ctx: Context[Any]) -> str:
        self.keys.append((ctx.request_context.meta or {}).get(IDEMPOTENCY_KEY_META))
        self.started.set()
        if self.calls_to_hang:
            self.calls_to_hang -= 1
            await asyncio.sleep(3600)
        return f"seat {seat}"

    def create_app(self, *, modern: bool = True) -> Any:
        inner = super().create_app(modern=modern)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or not self.answers_to_lose:
                await inner(scope, receive, send)
                return
            body = await read_body(receive) if scope["method"] == "POST" else b""
            is_lost = b'"tools/call"' in body
            self.answers_to_lose -= is_lost
            await inner(scope, replay(body, receive), drop if is_lost else send)
            if is_lost:
                self.on_loss()
                raise ConnectionError("the answer is lost")

        return app


async def read_body(receive: Receive) -> bytes:
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body, has_more = body + message.get("body", b""), message.get("more_body", False)
    return body


def replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def drop(_message: Message) -> None:
    """Send nothing."""


@pytest.fixture(params=ERAS, ids=list(ERAS))
def modern(request: pytest.FixtureRequest) -> bool:
    return ERAS[request.param]


@pytest.fixture
async def booking() -> BookingServer:
    return BookingServer()


@pytest.fixture
async def server(booking: BookingServer, modern: bool) -> AsyncGenerator[ServerConfig]:
    async with serve_asgi(booking.create_app(modern=modern)) as address:
        yield ServerConfig(name="booking", url=f"{address}/mcp", prefix="")


async def test_each_call_has_a_key_of_its_own(booking: BookingServer, server: ServerConfig) -> None:
    async with connect_toolbox(server) as toolbox:
        for tool in ("book", "book_plain", "book_read"):
            assert get_text(await call_tool(toolbox, tool, seat="1")) == "seat 1"
    assert len({UUID(str(key)) for key in booking.keys}) == 3


@pytest.mark.parametrize(
    ("tool", "lost", "outcome", "calls"),
    [
        ("book", 2, "ok", 3),
        ("book", 9, "unknown", 5),
        ("book_hinted", 1, "ok", 2),
        ("book_hinted", 9, "unknown", 2),
        ("book_plain", 1, "unknown", 1),
        ("book_read", 9, "error", 2),
    ],
)
async def test_call_with_a_lost_answer_is_repeated_with_its_key_if_that_is_safe(
    booking: BookingServer, server: ServerConfig, tool: str, lost: int, outcome: str, calls: int
) -> None:
    async with connect_toolbox(server) as toolbox:
        booking.answers_to_lose = lost
        result = await call_tool(toolbox, tool, seat="1")
        booking.answers_to_lose = 0
    assert (result.outcome, len(booking.keys), len(set(booking.keys))) == (outcome, calls, 1)


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_no_attempt_starts_once_the_turn_may_be_claimed(
    booking: BookingServer, server: ServerConfig, attempts: int
) -> None:
    async with connect_toolbox(server) as toolbox:
        booking.answers_to_lose = 9
        spec = toolbox.find_tool("book")
        assert spec is not None

        def require_lease() -> None:
            if len(booking.keys) == attempts:
                raise TurnTakenOver

        request = ToolCallRequest(spec, {"seat": "1"}, ADA, require_lease=require_lease)
        with pytest.raises(TurnTakenOver):
            await toolbox.call_tool(request)
        booking.answers_to_lose = 0
        assert toolbox.list_server_statuses()[0].state == "up"
    assert len(booking.keys) == attempts


async def test_entry_declares_that_all_tools_of_a_server_deduplicate(
    booking: BookingServer, server: ServerConfig
) -> None:
    async with connect_toolbox(server.model_copy(update={"idempotency": True})) as toolbox:
        booking.answers_to_lose = 1
        result = await call_tool(toolbox, "book_plain", seat="1")
    assert (result.outcome, len(booking.keys), len(set(booking.keys))) == ("ok", 2, 1)


@pytest.mark.parametrize(("tool", "outcome", "calls"), [("book", "ok", 2), ("book_hinted", "unknown", 1)])
async def test_call_that_timed_out_is_repeated_if_the_tool_deduplicates(
    booking: BookingServer, server: ServerConfig, tool: str, outcome: str, calls: int
) -> None:
    async with connect_toolbox(server, tool_timeout=2.0) as toolbox:
        booking.calls_to_hang = 1
        result = await call_tool(toolbox, tool, seat="1")
    assert (result.outcome, len(booking.keys), len(set(booking.keys))) == (outcome, calls, 1)


@pytest.mark.faults
async def test_call_is_repeated_once_its_killed_server_is_back(modern: bool) -> None:
    port = find_free_port()
    server = ServerConfig(name="one", url=f"http://127.0.0.1:{port}/mcp", prefix="", idempotency=True)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(run_server_process(port, modern))
        toolbox = await stack.enter_async_context(connect_toolbox(server))
        await eventually(lambda: toolbox.find_tool("hang_write"))
        call_task = asyncio.create_task(call_tool(toolbox, "hang_write"))
        await wait_for_hanging_calls(toolbox, "hanging", 1)
        process.kill()
        process.wait()
        await stack.enter_async_context(run_server_process(port, modern))

        async def hangs_at_the_new_process() -> bool:
            is_offered = toolbox.find_tool("hanging") is not None
            return is_offered and get_text(await call_tool(toolbox, "hanging")) == "1"

        await eventually(hangs_at_the_new_process)
        assert not call_task.done()
        call_task.cancel()


# --- turns


@asynccontextmanager
async def serve_booking(
    database_url: str, simulator: Simulator, booking: BookingServer, workers: int = 1, **settings: Any
) -> AsyncGenerator[list[Gateway]]:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_asgi(booking.create_app()))
        yield [
            await stack.enter_async_context(serve_gateway(database_url, simulator, f"{url}/mcp", **settings))
            for _ in range(workers)
        ]


async def test_calls_of_a_batch_have_different_keys(
    database_url: str, simulator: Simulator, booking: BookingServer
) -> None:
    async with serve_booking(database_url, simulator, booking, agent_batch_tool=True) as (gateway,):
        calls = [{"tool": "book_read", "arguments": {"seat": "1"}} for _ in range(3)]
        simulator.faults.add_faults(
            Fault(kind="tool_calls", calls=[{"name": "batch", "arguments": {"calls": calls}}], times=1)
        )
        reply = await gateway.chat_stream("Book")
    turn_id = UUID(reply.headers["x-turn-id"])
    (call,) = reply.get_event_data("tool.call")
    assert set(booking.keys) == {make_idempotency_key(turn_id, call["call_id"], number) for number in (1, 2, 3)}


async def test_call_is_repeated_with_its_key_after_a_takeover(
    database_url: str, simulator: Simulator, booking: BookingServer
) -> None:
    async with serve_booking(database_url, simulator, booking, workers=2, heartbeat_seconds=0.5) as (first, second):
        booking.calls_to_hang = 1
        async with first.stream('call book with {"seat": "1"}', on_disconnect="continue") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            async with asyncio.timeout(30):
                await booking.started.wait()
            await first.state.stop(0)
        events = await read_turn_events(second, turn_id)
    (call,) = [event.data for event in events if event.type == "tool.call"]
    (result,) = [event.data for event in events if event.type == "tool.result"]
    assert result["outcome"] == "ok"
    assert booking.keys == [make_idempotency_key(UUID(turn_id), call["call_id"])] * 2


async def test_interrupted_call_is_not_repeated_without_a_declaration(
    database_url: str, simulator: Simulator, booking: BookingServer
) -> None:
    async with serve_booking(database_url, simulator, booking, workers=2, heartbeat_seconds=0.5) as (first, second):
        booking.calls_to_hang = 1
        async with first.stream('call book_plain with {"seat": "1"}', on_disconnect="continue") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            async with asyncio.timeout(30):
                await booking.started.wait()
            await first.state.stop(0)
        events = await read_turn_events(second, turn_id)
    assert [event.data["outcome"] for event in events if event.type == "tool.result"] == ["unknown"]
    assert len(booking.keys) == 1


async def test_effect_of_a_call_repeated_after_a_crash_happens_once(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    """Start with the rows of a worker that crashed.

    The worker died before it stored the result of a call.
    """
    turn_id = "01a1fc00-0000-7000-8000-000000000001"
    arguments = {"title": "buy milk"}
    bearer = f"Bearer {make_secret_signer().get_token('local')}"
    async with (
        httpx2.AsyncClient(timeout=30, headers={"Authorization": bearer}) as http,
        Client(streamable_http_client(tools_url, http_client=http)) as client,
    ):
        key = make_idempotency_key(UUID(turn_id), "c1")
        first = await client.call_tool("add_task", arguments, meta={IDEMPOTENCY_KEY_META: key})
    journal = [
        {"type": "turn.started", "turn_id": turn_id, "conversation_id": None, "model": "openai/gpt-oss-120b"},
        {
            "type": "tool.call",
            "step": 1,
            "call_id": "c1",
            "server": "tools",
            "tool": "add_task",
            "arguments": arguments,
        },
        {"type": "step.completed", "step": 1, "finish_reason": "tool_calls", "usage": {"total_tokens": 5}},
    ]
    await db.execute(
        "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options)"
        " VALUES ($1::uuid, 'local', 'running', 'x', $2::jsonb, 'openai/gpt-oss-120b', '{}', '{}')",
        turn_id,
        json.dumps([{"role": "user", "content": "call add_task"}]),
    )
    payload = "\n".join(map(json.dumps, journal))
    await db.execute("INSERT INTO turn_events VALUES ($1::uuid, 1, 3, $2)", turn_id, payload)
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.5) as gateway:
        events = await read_turn_events(gateway, turn_id)
    (result,) = [event.data for event in events if event.type == "tool.result"]
    assert (result["outcome"], result["structured"]) == ("ok", first.structured_content)
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1


# --- hosts


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_key_of_a_host_reaches_the_server_for_its_user_alone(
    database_url: str, simulator: Simulator, booking: BookingServer, mode: Any
) -> None:
    async with (
        serve_booking(database_url, simulator, booking) as (gateway,),
        httpx2.AsyncClient(timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode) as client,
    ):
        tools = {tool.name: tool.meta for tool in (await client.list_tools()).tools}
        assert tools["book"] == tools["ask_agent"] == {IDEMPOTENT_META: True}
        assert not (tools["book_plain"] or {}).get(IDEMPOTENT_META)
        for key in ("k1", "k1", "k2", None):
            meta: Any = {IDEMPOTENCY_KEY_META: key} if key else None
            await client.call_tool("book", {"seat": "1"}, meta=meta)
    first, second, *others = booking.keys
    assert first == second != "k1"
    assert len({first, *others}) == 3


async def test_key_of_a_direct_call_reaches_the_server(
    database_url: str, simulator: Simulator, booking: BookingServer
) -> None:
    async with (
        serve_booking(database_url, simulator, booking) as (gateway,),
        httpx2.AsyncClient(timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http)) as client,
    ):
        for key in ("k1", "k1", "k2", None):
            assert await book_directly(gateway, key) == 200
        await client.call_tool("book", {"seat": "1"}, meta={IDEMPOTENCY_KEY_META: "k1"})
        assert [await book_directly(gateway, key) for key in ("", "x" * 201)] == [422, 422]
    first, second, *others, of_host = booking.keys
    assert first == second == of_host != "k1"
    assert len({first, *others}) == 3
    assert len(booking.keys) == 5


async def book_directly(gateway: Gateway, key: str | None) -> int:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with gateway.session.post(
        f"{gateway.base_url}/api/v1/tools/book", json={"seat": "1"}, headers=headers
    ) as response:
        return response.status
