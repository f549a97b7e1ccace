"""Tests of the bounds of legacy MCP sessions at `/mcp`."""

import gc
import math
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import anyio
import pytest
from mcp.server.streamable_http import StreamableHTTPServerTransport

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.gateway.test_mcp_session_forwarding import INITIALIZE_REQUEST, LIST_REQUEST, MCP_HEADERS
from tests.stack import Gateway, serve_gateway


async def open_session(gateway: Gateway, headers: Any = None) -> tuple[int, dict[str, str]]:
    """Open a session; return the status, and the headers of its requests."""
    headers = MCP_HEADERS | (headers or {})
    url = f"{gateway.base_url}/mcp"
    async with gateway.session.post(url, json=INITIALIZE_REQUEST, headers=headers) as response:
        await response.read()
        session = response.headers.get("Mcp-Session-Id")
        return response.status, headers | ({"Mcp-Session-Id": session} if session else dict(response.headers))


async def list_tools(gateway: Gateway, session: dict[str, str]) -> int:
    async with gateway.session.post(f"{gateway.base_url}/mcp", json=LIST_REQUEST, headers=session) as response:
        await response.read()
        return response.status


def count_transports() -> int:
    gc.collect()
    return sum(isinstance(item, StreamableHTTPServerTransport) for item in gc.get_objects())


def list_deadlines(gateway: Gateway) -> list[float]:
    """Return the seconds until each session expires.

    Those in use never do.
    """
    transports = gateway.state.mcp._manager._server_instances.values()
    return [transport.idle_scope.deadline - anyio.current_time() for transport in transports]


def let_idle_time_pass(gateway: Gateway) -> None:
    """Let the idle sessions expire now.

    No stall of the machine lets them expire before.
    """
    for transport in gateway.state.mcp._manager._server_instances.values():
        if not math.isinf(transport.idle_scope.deadline):
            transport.idle_scope.deadline = anyio.current_time()


async def test_session_left_open_expires_and_leaves_no_memory(database_url: str, simulator: Simulator) -> None:
    before = count_transports()
    async with serve_gateway(database_url, simulator, None, mcp_session_idle_seconds=600.0) as gateway:
        sessions = [(await open_session(gateway))[1] for _ in range(20)]
        assert [await list_tools(gateway, session) for session in sessions[:10]] == [200] * 10
        await eventually(lambda: max(list_deadlines(gateway)) <= 600)
        assert min(list_deadlines(gateway)) > 300
        let_idle_time_pass(gateway)
        await eventually(lambda: not gateway.state.mcp.session_count)
        assert [await list_tools(gateway, session) for session in sessions] == [404] * 20
        await eventually(lambda: count_transports() == before)


async def test_session_in_use_does_not_expire(database_url: str, simulator: Simulator) -> None:
    async with serve_gateway(database_url, simulator, None, mcp_session_idle_seconds=600.0) as gateway:
        _, used = await open_session(gateway)
        async with gateway.session.get(f"{gateway.base_url}/mcp", headers=used) as stream:
            assert stream.status == 200
            _, left = await open_session(gateway)
            await eventually(lambda: min(list_deadlines(gateway)) <= 600)
            let_idle_time_pass(gateway)
            await eventually(lambda: gateway.state.mcp.session_count == 1)
            assert await list_tools(gateway, left) == 404
            assert await list_tools(gateway, used) == 200
            let_idle_time_pass(gateway)
            assert list_deadlines(gateway) == [math.inf]
        await eventually(lambda: max(list_deadlines(gateway)) <= 600)
        let_idle_time_pass(gateway)
        await eventually(lambda: gateway.state.mcp.session_count == 0)


async def test_resumption_of_a_stream_is_refused_and_a_new_stream_opens(gateway: Gateway) -> None:
    url, (_, session) = f"{gateway.base_url}/mcp", await open_session(gateway)
    async with gateway.session.get(url, headers=session | {"Last-Event-ID": "7"}) as refused:
        assert (refused.status, (await refused.json())["error"]["code"]) == (400, -32600)
    async with gateway.session.get(url, headers=session) as stream:
        assert stream.status == 200
    unknown = session | {"Last-Event-ID": "7", "Mcp-Session-Id": "0" * 32}
    async with gateway.session.get(url, headers=unknown) as missing:
        assert missing.status == 404
    async with gateway.session.get(url, headers=MCP_HEADERS | {"Last-Event-ID": "7"}) as sessionless:
        assert 400 <= sessionless.status < 500


@pytest.mark.parametrize("setting", ["mcp_max_sessions", "mcp_max_user_sessions"])
async def test_new_session_replaces_the_least_recently_used_idle_one(
    database_url: str, simulator: Simulator, setting: str
) -> None:
    settings: Any = {setting: 3}
    async with serve_gateway(database_url, simulator, None, **settings) as gateway:
        sessions = [(await open_session(gateway))[1] for _ in range(3)]
        assert await list_tools(gateway, sessions[0]) == 200
        for _ in range(2):
            status, session = await open_session(gateway)
            sessions.append(session)
            assert (status, gateway.state.mcp.session_count) == (200, 3)
        assert [await list_tools(gateway, session) for session in sessions] == [200, 404, 404, 200, 200]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("mcp_max_sessions", (503, "overloaded")), ("mcp_max_user_sessions", (429, "rate_limited"))],
)
async def test_session_is_refused_while_all_are_in_use(
    database_url: str, simulator: Simulator, setting: str, expected: tuple[int, str]
) -> None:
    settings: Any = {setting: 2}
    async with (
        serve_gateway(database_url, simulator, None, **settings) as gateway,
        aiohttp.ClientSession() as http,
        AsyncExitStack() as stack,
    ):
        for _ in range(2):
            _, session = await open_session(gateway)
            stream = await stack.enter_async_context(http.get(f"{gateway.base_url}/mcp", headers=session))
            assert stream.status == 200
        refused = await gateway.post("/mcp", INITIALIZE_REQUEST, headers=MCP_HEADERS)
        assert (refused.status, refused.body["error"]["code"]) == expected
        assert int(refused.headers["Retry-After"]) > 0
        await stack.aclose()
        await eventually(lambda: opens_session(gateway))


async def opens_session(gateway: Gateway) -> bool:
    return (await open_session(gateway))[0] == 200


async def test_sessions_of_other_users_are_not_replaced(database_url: str, simulator: Simulator) -> None:
    async with serve_gateway(database_url, simulator, None, mcp_max_user_sessions=2) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        for user in ("ann", "bob"):
            await keyring.create_key(user)
        _, of_ann = await open_session(gateway, keyring.headers("ann"))
        for _ in range(5):
            assert (await open_session(gateway, keyring.headers("bob")))[0] == 200
        assert gateway.state.mcp.session_count == 3
        assert await list_tools(gateway, of_ann) == 200


async def test_keys_of_a_user_share_the_limit_and_modern_requests_open_no_session(
    database_url: str, simulator: Simulator
) -> None:
    async with serve_gateway(database_url, simulator, None, mcp_max_user_sessions=2) as gateway:
        keyring = Keyring(gateway)
        keys = [await keyring.create_key("eve", role="viewer") for _ in range(3)]
        for key in keys * 3:
            assert (await open_session(gateway, key))[0] == 200
        assert gateway.state.mcp.session_count == 2
        for _ in range(3):
            async with connect_mcp_client(gateway, keys[0], mode="2026-07-28") as client:
                await client.list_tools()
        assert gateway.state.mcp.session_count == 2


async def test_forwarded_requests_open_no_session_and_count_for_their_user(
    database_url: str, simulator: Simulator
) -> None:
    async with (
        serve_gateway(database_url, simulator, None, mcp_max_user_sessions=2) as first,
        serve_gateway(database_url, simulator, None, mcp_max_user_sessions=2) as second,
    ):
        sessions = [(await open_session(first))[1] for _ in range(2)]
        assert [await list_tools(second, session) for session in sessions] == [200, 200]
        assert (first.state.mcp.session_count, second.state.mcp.session_count) == (2, 0)
        assert (await open_session(first))[0] == 200
        assert [await list_tools(second, session) for session in sessions] == [404, 200]
        assert (first.state.mcp.session_count, second.state.mcp.session_count) == (2, 0)
