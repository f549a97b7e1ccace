"""Defined tools with two workers and two tool servers, as processes."""

import sys
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.e2e.cluster import Cluster, Worker, run_process
from tests.eventually import eventually
from tests.stack import SECRET, find_free_port
from tests.tools_server.definitions import serve_api

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
PATH = "/api/v1/tools/definitions"
SECRET_VALUE = "sk-of-the-two-processes"
SETTINGS = {
    "TOOLS_SERVER_SECRET": SECRET,
    "TOOLS_PRIVATE_TARGETS": "127.0.0.1:*",
    "TOOLS_ENCRYPTION_KEY": "a-key-of-both-processes",
}


async def call(worker: Worker, outcome: str = "ok") -> None:
    async def has_outcome() -> bool:
        reply = await worker.chat('use count_stock with {"article": "a"}')
        return [call["outcome"] for call in reply.body["tool_calls"]] == [outcome]

    await eventually(has_outcome)


async def test_definition_survives_the_end_of_a_tool_server(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    """Define a tool at one worker, and call it at another.

    Then kill that tool server, and call the tool again at its successor.
    """
    settings = {"DATABASE_URL": database_url, **SETTINGS}
    ports = [find_free_port(), find_free_port()]

    async def start_tools(stack: AsyncExitStack, port: int) -> Any:
        command, url = [sys.executable, "-m", "tools_server.cli"], f"http://127.0.0.1:{port}/health"
        return await stack.enter_async_context(
            run_process(command, url, session, **settings, TOOLS_SERVER_PORT=str(port))
        )

    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        api = await stack.enter_async_context(serve_api())
        tools = [await start_tools(stack, port) for port in ports]
        first, second = [
            await stack.enter_async_context(
                Cluster(database_url, simulator.base_url, f"http://127.0.0.1:{port}/mcp", session).run_worker()
            )
            for port in ports
        ]
        definition = {
            "name": "count_stock",
            "description": "Count the stock of an article.",
            "url": f"{api.url}/stock{{?article}}",
            "input_schema": {"type": "object", "properties": {"article": {"type": "string"}}},
            "headers": {"X-Key": "{secret.key}"},
            "secrets": {"key": SECRET_VALUE},
        }
        assert (await first.post(PATH, definition)).status == 201
        assert (await first.post(f"{PATH}/count_stock/publish", {})).status == 200
        await call(first)
        await call(second)
        tools[1].kill()
        tools[1].wait()
        assert (await second.get(PATH)).status == 502
        await start_tools(stack, ports[1])
        await call(second)
        async with session.delete(f"{first.base_url}{PATH}/count_stock") as response:
            assert response.status == 204

        async def is_gone() -> bool:
            return "count_stock" not in str((await second.get("/api/v1/tools")).body)

        await eventually(is_gone)
    assert {request["target"] for request in api.requests} == {"/stock?article=a"}
    assert {request["headers"]["X-Key"] for request in api.requests} == {SECRET_VALUE}
    assert await db.fetchval("SELECT count(*) FROM tools.http_tool_secrets") == 0
