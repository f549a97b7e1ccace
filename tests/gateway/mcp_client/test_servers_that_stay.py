"""Tests of servers with an odd handshake or change stream."""

import asyncio
import json
from typing import Any

import pytest

from gateway.mcp_client.connection import negotiation, session, tool_list, watch
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.odd_http_server import (
    STREAM_HEADERS,
    OddHttpServer,
    refuse,
    send_answer,
    send_result,
    stay_silent,
)
from tests.gateway.mcp_client.test_toolbox import ADA, call_tool, connect_toolbox, get_text
from tests.stack import find_free_port, serve_asgi


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_ACKNOWLEDGEMENT_SECONDS", 0.5)
    monkeypatch.setattr(watch, "_MAX_RELISTEN_SECONDS", 0.1)


async def answer_with_nothing(_server: OddHttpServer, request: Any, send: Any) -> None:
    await send_result(send, request, {})


async def answer_with_no_message(_server: OddHttpServer, _request: Any, send: Any) -> None:
    await send_answer(send, 200, b"{}")


async def acknowledge_and_cut(_server: OddHttpServer, request: Any, send: Any) -> None:
    """Acknowledge the stream, and cut it as a proxy does."""
    meta = {"io.modelcontextprotocol/subscriptionId": request["id"]}
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    message = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params}
    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
    await send({"type": "http.response.body", "body": f"data: {json.dumps(message)}\n\n".encode(), "more_body": True})


def make_config(address: str, **options: Any) -> ServerConfig:
    return ServerConfig(name="odd", url=f"{address}/mcp", prefix="", **options)


def get_state(toolbox: McpToolbox) -> tuple[str, str | None]:
    status = toolbox.list_server_statuses()[0]
    return status.state, status.reason


@pytest.mark.parametrize(
    "answer",
    [
        refuse(405),
        refuse(404),
        refuse(500),
        answer_with_nothing,
        answer_with_no_message,
        stay_silent,
        acknowledge_and_cut,
    ],
    ids=["405", "404", "500", "empty result", "no message", "silence", "cut"],
)
async def test_server_without_a_working_listen_stream_stays_up(answer: Any) -> None:
    odd = OddHttpServer(listen=answer)
    async with serve_asgi(odd) as address, connect_toolbox(make_config(address)) as toolbox:
        states = {get_state(toolbox)}

        def has_listened(times: int) -> bool:
            states.add(get_state(toolbox))
            return odd.counts["subscriptions/listen"] >= times

        await eventually(lambda: has_listened(2))
        assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
        await odd.trial.add_tool("fresh")
        await eventually(lambda: toolbox.find_tool("fresh") is not None)
        assert states == {("up", None)}


async def test_server_whose_list_fails_is_down_until_it_answers_again() -> None:
    odd = OddHttpServer(listen=refuse(405))
    async with serve_asgi(odd) as address, connect_toolbox(make_config(address)) as toolbox:
        odd.answers["list"] = refuse(500)
        await eventually(lambda: get_state(toolbox)[0] == "down")
        del odd.answers["list"]
        await eventually(lambda: get_state(toolbox) == ("up", None))


async def test_reason_is_that_of_the_last_failure() -> None:
    odd = OddHttpServer(initialize=refuse(404), discover=refuse(404))
    port = find_free_port()
    config = make_config(f"http://127.0.0.1:{port}")
    async with connect_toolbox(config) as toolbox:
        assert get_state(toolbox) == ("down", "nothing answers at its address")
        async with serve_asgi(odd, port):
            await eventually(lambda: get_state(toolbox) == ("down", "it answered with an error: Not Found"))
        await eventually(lambda: get_state(toolbox) == ("down", "nothing answers at its address"))


async def test_server_silent_on_discover_connects_and_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "_PROBE_SECONDS", 0.1)  # a server that answers late would seem to be a legacy one
    odd = OddHttpServer(modern=False, discover=stay_silent)
    async with serve_asgi(odd) as address, connect_toolbox(make_config(address)) as toolbox:
        assert get_state(toolbox) == ("up", None)
        assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
        connection = toolbox._pool.get_shared("odd")
        assert connection is not None
        connection._status.broken_event.set()
        await eventually(lambda: odd.counts["initialize"] == 2 and get_state(toolbox) == ("up", None))
        assert odd.counts["server/discover"] == 1


@pytest.mark.parametrize(
    ("protocol", "version", "unsent"),
    [
        ("legacy", "2025-11-25", "server/discover"),
        ("2025-06-18", "2025-06-18", "server/discover"),
        ("2026-07-28", "2026-07-28", "initialize"),
    ],
)
async def test_entry_pins_the_protocol(protocol: str, version: str, unsent: str) -> None:
    odd = OddHttpServer()
    async with (
        serve_asgi(odd) as address,
        connect_toolbox(make_config(address, protocol=protocol)) as toolbox,
    ):
        status = toolbox.list_server_statuses()[0]
        assert (status.state, status.protocol_version, odd.counts[unsent]) == ("up", version, 0)
        assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
        assert await toolbox.list_server_items("resources", ADA)


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
async def test_server_without_tools_capability_serves_its_resources(
    monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    monkeypatch.setattr(tool_list, "_UNDECLARED_SECONDS", 0.1)

    async def answer_handshake(_server: OddHttpServer, request: Any, send: Any) -> None:
        info = {"name": "case", "version": "1"}
        capabilities = {"prompts": {}, "resources": {}}
        result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info}
        await send_result(send, request, result)

    async def answer_list(server: OddHttpServer, request: Any, send: Any) -> None:
        if request["method"] == "resources/list":
            await send_result(send, request, {"resources": [{"uri": "n://one", "name": "one"}]})
        elif is_silent:
            await stay_silent(server, request, send)
        else:
            error = {"code": -32601, "message": "Method not found"}
            await send_answer(send, 200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode())

    async def accept(_server: OddHttpServer, _request: Any, send: Any) -> None:
        await send_answer(send, 202)

    odd = OddHttpServer(
        discover=refuse(400), initialize=answer_handshake, list=answer_list, initialized=accept, cancelled=accept
    )
    async with serve_asgi(odd) as address, connect_toolbox(make_config(address)) as toolbox:
        assert get_state(toolbox) == ("up", None)
        (resource,) = await toolbox.list_server_items("resources", ADA)
        assert resource["uri"] == "n://one"


async def test_slow_list_lengthens_the_time_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_list, "_MIN_EXPECTED_SECONDS", 0.5)

    async def answer_late(_server: OddHttpServer, request: Any, send: Any) -> None:
        await asyncio.sleep(1.0)
        await send_result(send, request, {"tools": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"})

    odd = OddHttpServer(list=answer_late, listen=refuse(405))
    async with serve_asgi(odd) as address, connect_toolbox(make_config(address)) as toolbox:
        await eventually(lambda: odd.counts["tools/list"] >= 3)
        assert get_state(toolbox) == ("up", None)


def test_start_and_list_have_the_sixty_seconds_that_are_documented() -> None:
    assert (session.START_SECONDS, tool_list._LIST_TIMEOUT_SECONDS) == (60, 60)


@pytest.mark.parametrize(("kind", "path"), [("sse", "events"), ("http", "sse")])
async def test_untyped_address_connects_by_the_transport_that_answers(kind: str, path: str) -> None:
    mcp = TrialServer().mcp
    app: Any = (
        mcp.sse_app(sse_path=f"/{path}") if kind == "sse" else mcp.streamable_http_app(streamable_http_path="/sse")
    )
    async with serve_asgi(app) as address:
        config = ServerConfig(name="odd", url=f"{address}/{path}", prefix="")
        async with connect_toolbox(config) as toolbox:
            status = toolbox.list_server_statuses()[0]
            assert (status.state, status.reason, status.transport) == ("up", None, kind)
            assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
