"""Tests of the toolbox over real MCP servers of both protocols."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from mcp import Client
from mcp.types import ListToolsResult
from pydantic import SecretStr
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from gateway.config import Settings
from gateway.domain.messages import Answer, Principal, Question, ToolResult
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.tools import CallObserver, ToolCallRequest
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import SECRET, find_free_port, serve_asgi

ROOT = Path(__file__).parent.parent.parent.parent
ADA = Principal("ada")
ERAS = {"modern": True, "legacy": False}
MODERN_ONLY = pytest.mark.parametrize("modern", [True], ids=["modern"])
"""Excludes legacy clients, which the SDK's server notifies only inside a request."""


@asynccontextmanager
async def connect_toolbox(
    *servers: ServerConfig, connect_timeout: float = 30.0, **settings: object
) -> AsyncGenerator[McpToolbox]:
    all_settings = Settings(_env_file=None, tools_server_secret=SecretStr(SECRET), **settings)  # type: ignore[call-arg,arg-type]
    toolbox = McpToolbox(list(servers), all_settings)
    await toolbox.connect_servers()
    await toolbox.wait_until_connected(connect_timeout)
    try:
        yield toolbox
    finally:
        await toolbox.disconnect_servers()


async def call_tool(toolbox: McpToolbox, name: str, principal: Principal = ADA, **arguments: object) -> ToolResult:
    spec = toolbox.find_tool(name)
    assert spec is not None, [spec.name for spec in toolbox.list_specs()]
    result = await toolbox.call_tool(ToolCallRequest(spec, arguments, principal))
    assert isinstance(result, ToolResult)
    return result


def get_text(result: ToolResult) -> str:
    return "\n".join(str(block.get("text")) for block in result.content)


async def call_until_answered(toolbox: McpToolbox, name: str, text: str) -> None:
    """Call the tool until its result is the text.

    On a stalled machine calls may time out or not reach the server.
    """

    async def returns_text() -> bool:
        result = await call_tool(toolbox, name, text=text)
        return result.outcome == "ok" and result.content[0]["text"] == text

    await eventually(returns_text)


async def wait_for_hanging_calls(toolbox: McpToolbox, name: str, calls: int) -> None:
    """Wait until `calls` calls hang; the server's tool `name` counts them."""

    async def counts_all() -> bool:
        result = await call_tool(toolbox, name)
        return result.outcome == "ok" and get_text(result) == str(calls)

    await eventually(counts_all)


@pytest.fixture(params=ERAS, ids=list(ERAS))
def modern(request: pytest.FixtureRequest) -> bool:
    return ERAS[request.param]


@pytest.fixture
async def trial(modern: bool) -> AsyncGenerator[tuple[TrialServer, ServerConfig]]:
    server = TrialServer()
    async with serve_asgi(server.create_app(modern=modern)) as address:
        yield server, ServerConfig(name="trial", url=f"{address}/mcp", prefix="", identity="gateway")


@asynccontextmanager
async def run_server_process(port: int, modern: bool) -> AsyncGenerator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "tests.gateway.mcp_client.mcp_servers", str(port), *([] if modern else ["legacy"])]
    server = subprocess.Popen(argv, cwd=ROOT)
    try:
        yield server
    finally:
        server.kill()
        server.wait()


TrialSetup = tuple[TrialServer, ServerConfig]


async def test_connected_server_provides_tools_instructions_and_status(trial: TrialSetup, modern: bool) -> None:
    async with connect_toolbox(trial[1]) as toolbox:
        names = [spec.name for spec in toolbox.list_specs()]
        assert names == sorted(names)
        assert {"echo", "crash"} <= set(names)
        instructions = toolbox.get_instructions({"trial"})
        assert (instructions.endswith("> Trial instructions."), toolbox.get_instructions(set())) == (True, "")
        status = toolbox.list_server_statuses()[0]
        assert (status.state, status.tools) == ("up", len(names))
        assert status.protocol_version == ("2026-07-28" if modern else "2025-11-25")
        spec = toolbox.find_tool("echo")
        assert spec is not None
        assert (spec.read_only, spec.server) == (True, "trial")


async def test_tool_failures_are_returned_as_error_results(trial: TrialSetup) -> None:
    async with connect_toolbox(trial[1]) as toolbox:
        assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
        refused = await call_tool(toolbox, "refuse")
        assert (refused.outcome, get_text(refused)) == (
            "error",
            "Error executing tool refuse: No, because of the weather.",
        )
        crashed = await call_tool(toolbox, "crash")
        assert crashed.outcome == "error"
        assert "internal detail" not in get_text(crashed)
        assert (await call_tool(toolbox, "echo", wrong=1)).outcome == "error"
        picture = await call_tool(toolbox, "picture")
        assert picture.content[1] == {"type": "image", "data": "aGk=", "mimeType": "image/png"}


@pytest.mark.parametrize(("tool", "outcome"), [("hang_read", "error"), ("hang_write", "unknown")])
async def test_timed_out_call_is_cancelled_on_the_server(trial: TrialSetup, tool: str, outcome: str) -> None:
    async with connect_toolbox(trial[1], tool_timeout=0.3) as toolbox:

        async def given_up() -> bool:
            result = await call_tool(toolbox, tool)
            assert result.outcome == outcome
            assert "0.3 seconds" in get_text(result)
            return trial[0].started.is_set()  # on a stalled machine the time is over before the call reaches its server

        await eventually(given_up)
        async with asyncio.timeout(30):
            await trial[0].cancelled.wait()
        toolbox._timeout = 30.0  # the next call must work, also on a stalled machine
        assert get_text(await call_tool(toolbox, "echo", text="still there")) == "still there"


async def test_call_timeout_is_paused_during_elicitation() -> None:
    class Observer(CallObserver):
        def __init__(self) -> None:
            self.question_received, self.answer_allowed = asyncio.Event(), asyncio.Event()

        def on_progress(self, progress: float, total: float | None, message: str | None) -> None: ...

        def on_log(self, level: str, data: Any, logger: str | None) -> None: ...

        async def ask_user(self, question: Question) -> Answer:
            self.question_received.set()
            await self.answer_allowed.wait()
            return Answer("accept", {"row": "front"})

    observer = Observer()
    async with (
        serve_asgi(TrialServer().create_app(modern=False)) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        spec = toolbox.find_tool("reserve")
        assert spec is not None
        call_task = asyncio.create_task(toolbox.call_tool(ToolCallRequest(spec, {"seats": 2}, ADA, observer=observer)))
        async with asyncio.timeout(30):
            await observer.question_received.wait()
        connection = toolbox._pool.get_shared("t")
        assert connection is not None
        [ongoing_call] = connection._calls._calls
        assert ongoing_call._timeout.is_paused
        observer.answer_allowed.set()
        result = await call_task
    assert isinstance(result, ToolResult)
    assert get_text(result) == "2 at the front"


async def test_cancelled_call_is_cancelled_on_the_server(trial: TrialSetup) -> None:
    async with connect_toolbox(trial[1]) as toolbox:
        call_task = asyncio.create_task(call_tool(toolbox, "hang_write"))
        async with asyncio.timeout(30):
            await trial[0].started.wait()
            call_task.cancel()
            await trial[0].cancelled.wait()
        assert get_text(await call_tool(toolbox, "echo", text="still there")) == "still there"


async def test_two_hundred_concurrent_calls_are_not_mixed_up(trial: TrialSetup) -> None:
    async with connect_toolbox(trial[1]) as toolbox:
        results = await asyncio.gather(*(call_tool(toolbox, "echo", text=str(n)) for n in range(200)))
    assert [get_text(result) for result in results] == [str(n) for n in range(200)]


async def test_calls_over_a_shared_connection_carry_their_user_token(trial: TrialSetup) -> None:
    users = [f"user-{n % 5}" for n in range(50)]
    async with connect_toolbox(trial[1]) as toolbox:
        results = await asyncio.gather(*(call_tool(toolbox, "whoami", Principal(user)) for user in users))
    for user, result in zip(users, results, strict=True):
        token = get_text(result).removeprefix("Bearer ")
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience=trial[1].url, issuer="agent-gateway")
        assert claims["sub"] == user
        assert claims["exp"] - claims["iat"] <= 120
    other_requests = [authorization for method, authorization in trial[0].requests if method != "tools/call"]
    for authorization in filter(None, other_requests[:3]):
        claims = jwt.decode(authorization[7:], SECRET, algorithms=["HS256"], audience=trial[1].url)
        assert claims["sub"] == "agent-gateway"


async def test_server_without_identity_gets_no_token(trial: TrialSetup) -> None:
    config = trial[1].model_copy(update={"identity": "none", "headers": {"Authorization": "Bearer own"}})
    async with connect_toolbox(config) as toolbox:
        assert get_text(await call_tool(toolbox, "whoami")) == "Bearer own"


async def test_progress_and_log_reach_the_observer(trial: TrialSetup) -> None:
    class Observer(CallObserver):
        def __init__(self) -> None:
            self.notifications: list[object] = []

        def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
            self.notifications.append((progress, total, message))

        def on_log(self, level: str, data: Any, logger: str | None) -> None:
            self.notifications.append((level, data))

        async def ask_user(self, question: Question) -> Answer:
            raise AssertionError(question)

    observer = Observer()
    async with connect_toolbox(trial[1]) as toolbox:
        spec = toolbox.find_tool("chatter")
        assert spec is not None
        await toolbox.call_tool(ToolCallRequest(spec, {}, ADA, observer=observer))
        await eventually(lambda: len(observer.notifications) >= 3)
    assert (1.0, 2.0, "half") in observer.notifications
    assert ("info", "a log line") in observer.notifications


@MODERN_ONLY
async def test_new_tool_is_offered_after_list_changed_notification(trial: TrialSetup) -> None:
    async with connect_toolbox(trial[1]) as toolbox:
        await trial[0].add_tool("brand_new")
        await eventually(lambda: toolbox.find_tool("brand_new") is not None)


async def test_allow_and_deny_patterns_filter_tools(trial: TrialSetup) -> None:
    config = trial[1].model_copy(update={"allow": ("*e*",), "deny": ("crash", "hang_*", "refuse")})
    async with connect_toolbox(config) as toolbox:
        assert [spec.name for spec in toolbox.list_specs()] == ["chatter", "echo", "picture", "reserve"]


async def test_server_down_at_startup_is_connected_later(modern: bool) -> None:
    port = find_free_port()
    async with connect_toolbox(ServerConfig(name="late", url=f"http://127.0.0.1:{port}/mcp")) as toolbox:
        assert toolbox.list_specs() == ()
        assert toolbox.list_server_statuses()[0].state == "down"
        assert toolbox.list_server_statuses()[0].reason == "nothing answers at its address"
        async with run_server_process(port, modern):
            await eventually(lambda: toolbox.find_tool("late_echo") is not None)
            assert get_text(await call_tool(toolbox, "late_echo", text="hi")) == "hi"


@pytest.mark.faults
async def test_killed_server_fails_only_its_own_calls_and_is_reconnected(modern: bool) -> None:
    port, other_port = find_free_port(), find_free_port()
    servers = [ServerConfig(name=n, url=f"http://127.0.0.1:{p}/mcp") for n, p in (("one", port), ("two", other_port))]
    async with run_server_process(other_port, modern), connect_toolbox(*servers, connect_timeout=0.1) as toolbox:
        async with run_server_process(port, modern) as victim:
            await eventually(lambda: toolbox.find_tool("one_echo") and toolbox.find_tool("two_echo"))
            hanging = {
                name: asyncio.create_task(call_tool(toolbox, name)) for name in ("one_hang_write", "one_hang_read")
            }
            other_call = asyncio.create_task(call_tool(toolbox, "two_hang_read"))
            await asyncio.gather(*(call_tool(toolbox, "one_echo", text="x") for _ in range(5)))
            os.kill(victim.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                assert (await hanging["one_hang_write"]).outcome == "unknown"
                assert (await hanging["one_hang_read"]).outcome == "error"
            assert not other_call.done()
            assert get_text(await call_tool(toolbox, "two_echo", text="alive")) == "alive"
            spec = toolbox.find_tool("one_echo")
            if spec is not None:  # a legacy server's absence is detected only by a call
                result = await toolbox.call_tool(ToolCallRequest(spec, {"text": "x"}, ADA))
                assert isinstance(result, ToolResult)
                assert result.outcome == "error"
                assert "not reachable" in get_text(result)
        async with run_server_process(port, modern):
            await eventually(lambda: toolbox.find_tool("one_echo") is not None)
            await call_until_answered(toolbox, "one_echo", "back")
        other_call.cancel()


async def test_server_that_starts_late_speaks_the_current_protocol() -> None:
    """Some of many connections begin their next attempt when it has started."""
    port = find_free_port()
    configs = [ServerConfig(name=f"s{number}", url=f"http://127.0.0.1:{port}/mcp") for number in range(8)]
    async with connect_toolbox(*configs, connect_timeout=0.1) as toolbox, run_server_process(port, modern=True):
        await eventually(lambda: all(status.state == "up" for status in toolbox.list_server_statuses()))
        assert {status.protocol_version for status in toolbox.list_server_statuses()} == {"2026-07-28"}


async def test_restarted_legacy_server_gets_a_new_session() -> None:
    """The server restarts between two calls and loses the session."""
    port = find_free_port()
    async with connect_toolbox(
        ServerConfig(name="s", url=f"http://127.0.0.1:{port}/mcp"), connect_timeout=0.1
    ) as toolbox:
        async with run_server_process(port, modern=False):
            await eventually(lambda: toolbox.find_tool("s_echo") is not None)
        async with run_server_process(port, modern=False):
            await eventually(lambda: _accepts_connections(port))
            await call_until_answered(toolbox, "s_echo", "back")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, -32001, "Session not found"),
        (404, -32000, "It has expired"),
        (400, -32000, "Bad Request: No valid session ID provided"),
        (400, -32000, "Bad Request: Server not initialized"),
    ],
)
async def test_expired_session_is_renewed_after_each_kind_of_error(status: int, code: int, message: str) -> None:
    inner = TrialServer().create_app(modern=False)
    sessions: list[bytes] = []

    async def reject_old_sessions(scope: Scope, receive: Receive, send: Send) -> None:
        session = dict(scope.get("headers", [])).get(b"mcp-session-id")
        if scope.get("method") == "POST" and session is not None and session in sessions[:-1]:
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
            await JSONResponse(error, status_code=status)(scope, receive, send)
            return

        async def record_session(event: Message) -> None:
            session = dict(event.get("headers", [])).get(b"mcp-session-id")
            if session is not None and session not in sessions:
                sessions.append(session)
            await send(event)

        await inner(scope, receive, record_session)

    async with (
        serve_asgi(reject_old_sessions) as address,
        connect_toolbox(ServerConfig(name="s", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        assert get_text(await call_tool(toolbox, "echo", text="one")) == "one"
        sessions.append(b"another")  # as after a restart
        assert get_text(await call_tool(toolbox, "echo", text="two")) == "two"


@MODERN_ONLY
async def test_tools_are_listed_again_after_an_invalid_list(trial: TrialSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    server, config = trial
    original_list_tools, is_invalid = Client.list_tools, False

    async def list_tools(self: Client, **options: Any) -> Any:
        return (
            ListToolsResult.model_validate({"tools": [{"name": 5}]})
            if is_invalid
            else await original_list_tools(self, **options)
        )

    monkeypatch.setattr(Client, "list_tools", list_tools)
    async with connect_toolbox(config) as toolbox:
        await eventually(lambda: toolbox.find_tool("echo") is not None)
        is_invalid = True
        await server.add_tool("first")
        await eventually(lambda: toolbox.list_server_statuses()[0].state != "up")
        is_invalid = False
        await server.add_tool("second")
        await eventually(lambda: toolbox.find_tool("second") is not None)
        assert toolbox.list_server_statuses()[0].state == "up"


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_server_that_hangs_on_connect_does_not_block_startup() -> None:
    requested, released = asyncio.Event(), asyncio.Event()

    async def hang_until_released(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):  # the client stops while it sends a further request
            await reader.readuntil(b"\r\n\r\n")
            requested.set()
            await released.wait()
        writer.close()

    server = await asyncio.start_server(hang_until_released, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = ServerConfig(name="silent", url=f"http://127.0.0.1:{port}/mcp")
    async with asyncio.timeout(30), connect_toolbox(config, connect_timeout=0.2) as toolbox:
        await requested.wait()
        assert toolbox.list_server_statuses()[0].state == "connecting"
        released.set()  # only now does the server end the request
        await eventually(lambda: toolbox.list_server_statuses()[0].state == "down")
    server.close()


async def test_disconnect_leaves_no_tasks(trial: TrialSetup) -> None:
    before = asyncio.all_tasks()
    async with connect_toolbox(trial[1], ServerConfig(name="dead", url="http://127.0.0.1:9/mcp")) as toolbox:
        await call_tool(toolbox, "echo", text="x")
    await eventually(lambda: not {t for t in asyncio.all_tasks() - before if "mcp" in t.get_name()})


async def test_server_without_change_notifications_is_polled() -> None:
    server = TrialServer()
    server.mcp._lowlevel_server._request_handlers.pop("subscriptions/listen")
    async with (
        serve_asgi(server.create_app()) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        request_count = len(server.requests)
        await eventually(
            lambda: (
                ("tools/list", None) in server.requests[request_count:]
                or toolbox.list_server_statuses()[0].state == "down"
            )
        )
        await eventually(lambda: toolbox.list_server_statuses()[0].state == "up")
        assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
