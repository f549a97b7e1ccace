"""Tests of legacy MCP sessions whose requests go to several workers."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitRequestParams, ElicitResult, ToolListChangedNotification

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import Gateway, serve_asgi, serve_gateway

INITIALIZE_REQUEST = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
LIST_REQUEST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
MCP_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


@pytest.fixture
async def trial() -> TrialServer:
    return TrialServer()


@pytest.fixture
async def workers(database_url: str, simulator: Simulator, trial: TrialServer) -> AsyncGenerator[list[Gateway]]:
    """Three gateways on one database, before a server that asks questions."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_asgi(trial.create_app(modern=False)))
        yield [await stack.enter_async_context(serve_gateway(database_url, simulator, f"{url}/mcp")) for _ in range(3)]


class RoundRobinTransport(httpx2.AsyncBaseTransport):
    """Sends each request to the next worker, without sticky sessions."""

    def __init__(self, workers: list[Gateway]) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self._next = itertools.cycle([httpx2.URL(worker.base_url).port for worker in workers])
        self.sent_methods: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(port=next(self._next))
        self.sent_methods.append(request.method)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def connect_host(workers: list[Gateway], **options: Any) -> AsyncGenerator[Client]:
    transport = RoundRobinTransport(workers)
    url = f"{workers[0].base_url}/mcp"
    async with (
        httpx2.AsyncClient(transport=transport, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http), mode="legacy", **options) as client,
    ):
        yield client
    assert transport.sent_methods[-1] == "DELETE"


async def test_requests_reach_their_session_through_any_worker(workers: list[Gateway], trial: TrialServer) -> None:
    progress: list[tuple[float, str | None]] = []

    async def record_progress(done: float, _total: float | None, message: str | None) -> None:
        progress.append((done, message))

    async with connect_host(workers) as client:
        for _ in range(4):
            assert "echo" in {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}
            assert (await client.call_tool("echo", {"text": "hi"})).content[0].text == "hi"  # type: ignore[union-attr]
        await client.call_tool("chatter", {}, progress_callback=record_progress)
        await eventually(lambda: progress == [(1, "half"), (2, "whole")])
        for _ in range(3):  # each cancellation reaches another worker than its call
            trial.started.clear()
            trial.cancelled.clear()
            call_task = asyncio.create_task(client.call_tool("hang_write", {}))
            async with asyncio.timeout(30):
                await trial.started.wait()
                call_task.cancel()
                await trial.cancelled.wait()


async def test_elicitation_is_answered_through_any_worker(workers: list[Gateway]) -> None:
    async def accept(_context: Any, _params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"row": "front"})

    async with connect_host(workers, elicitation_callback=accept) as client:
        for seats in (2, 3, 4):
            result = await client.call_tool("reserve", {"seats": seats})
            assert result.content[0].text == f"{seats} at the front"  # type: ignore[union-attr]


async def test_host_is_notified_of_new_tools_through_any_worker(workers: list[Gateway], trial: TrialServer) -> None:
    changed = asyncio.Event()

    async def on_message(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            changed.set()

    async with serve_asgi(trial.create_app()) as url, connect_host(workers, message_handler=on_message) as client:
        await client.list_tools()
        async with asyncio.timeout(30):
            body = {"name": "extra", "url": f"{url}/mcp"}
            assert (await workers[2].post("/api/v1/mcp/servers", body)).status == 201
            while "extra_echo" not in {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}:
                await changed.wait()
                changed.clear()


async def test_session_of_a_stopped_worker_is_not_found(
    workers: list[Gateway], database_url: str, simulator: Simulator
) -> None:
    other = workers[0]
    async with serve_gateway(database_url, simulator, None) as first:
        async with first.session.post(
            f"{first.base_url}/mcp", json=INITIALIZE_REQUEST, headers=MCP_HEADERS
        ) as response:
            session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
        async with other.session.post(
            f"{other.base_url}/mcp", json=LIST_REQUEST, headers=MCP_HEADERS | session
        ) as response:
            assert response.status == 200
            assert response.headers["Mcp-Session-Id"] == session["Mcp-Session-Id"]
        open_stream = await other.session.get(f"{other.base_url}/mcp", headers=MCP_HEADERS | session)
        assert open_stream.status == 200
    async with asyncio.timeout(30):
        await open_stream.read()  # the stream through another worker ends too
    session_ids = ("x", "x-../../etc/passwd", f"x-{'0' * 32}", session["Mcp-Session-Id"])
    for session_id in session_ids:
        headers = MCP_HEADERS | {"Mcp-Session-Id": session_id}
        async with other.session.post(f"{other.base_url}/mcp", json=LIST_REQUEST, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["message"]) == (404, "Session not found"), (
                session_id
            )


async def test_stopping_worker_ends_forwarded_streams(workers: list[Gateway]) -> None:
    first, other = workers[:2]
    async with first.session.post(f"{first.base_url}/mcp", json=INITIALIZE_REQUEST, headers=MCP_HEADERS) as response:
        session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
    async with other.session.get(f"{other.base_url}/mcp", headers=MCP_HEADERS | session) as open_stream:
        assert open_stream.status == 200
        other.state.mcp.stop_listening()
        async with asyncio.timeout(30):
            await open_stream.read()
    async with first.session.post(
        f"{first.base_url}/mcp", json=LIST_REQUEST, headers=MCP_HEADERS | session
    ) as response:
        assert response.status == 200
