"""Tests of answers that are too large to be read."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.mcp_client.http.event_limit import EventLimitingTransport
from gateway.mcp_client.oauth.https_only import HttpsOnlyTransport
from gateway.mcp_client.server_config import ServerConfig
from tests.gateway.mcp_client.mcp_servers import TrialServer, hide_modern_protocol
from tests.gateway.mcp_client.test_toolbox import call_tool, connect_toolbox, get_text, wait_for_hanging_calls
from tests.gateway.mcp_client.test_transports import make_stdio_config
from tests.stack import serve_asgi

MIB = 1024 * 1024


class LargeAnswerServer(TrialServer):
    """A server with tools whose results may be large."""

    def __init__(self) -> None:
        super().__init__()
        self.effects = 0
        self.mcp.add_tool(self.repeat, annotations=ToolAnnotations(read_only_hint=True), structured_output=False)
        self.mcp.add_tool(self.log_often, structured_output=False)
        self.mcp.add_tool(self.write_and_repeat, structured_output=False)

    async def repeat(self, length: int) -> str:
        """Return a text of this length."""
        return "x" * length

    async def log_often(self, length: int, ctx: Context[Any]) -> str:
        """Log four texts of this length."""
        for _ in range(4):
            await ctx.info("x" * length)
        return "logged"

    async def write_and_repeat(self, length: int) -> str:
        """Count an effect, and return a text of this length."""
        self.effects += 1
        return "x" * length

    def create_app_with(self, *, json_response: bool, modern: bool, compressed: bool) -> ASGIApp:
        app: ASGIApp = self.mcp.streamable_http_app(json_response=json_response)
        app = app if modern else hide_modern_protocol(app)
        return GZipMiddleware(app) if compressed else app


@pytest.mark.parametrize(
    "options",
    [
        {"json_response": True, "modern": True, "compressed": False},
        {"json_response": True, "modern": True, "compressed": True},
        {"json_response": True, "modern": False, "compressed": False},
        {"json_response": False, "modern": False, "compressed": False},
    ],
    ids=["modern-json", "modern-gzip", "legacy-json", "legacy-sse"],
)
async def test_answer_that_is_too_large_fails_only_its_own_call(options: dict[str, Any]) -> None:
    server = LargeAnswerServer()
    async with (
        serve_asgi(server.create_app_with(**options)) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix=""), mcp_max_message_bytes=MIB) as toolbox,
    ):
        slow_call = asyncio.create_task(call_tool(toolbox, "slow"))
        async with asyncio.timeout(30):
            await server.started.wait()
        for name in ("repeat", "write_and_repeat"):
            result = await call_tool(toolbox, name, length=2 * MIB)
            assert (result.outcome, "is too large" in get_text(result)) == ("error", True), result
        assert server.effects == 1
        server.release.set()
        assert get_text(await slow_call) == "done"
        assert toolbox.list_server_statuses()[0].state == "up"
        assert get_text(await call_tool(toolbox, "log_often", length=MIB // 2)) == "logged"


async def test_event_of_the_legacy_transport_that_is_too_large_fails_only_its_own_call() -> None:
    server = LargeAnswerServer()
    async with (
        serve_asgi(server.mcp.sse_app()) as address,
        connect_toolbox(
            ServerConfig(name="t", url=f"{address}/sse", type="sse", prefix=""),
            tool_result_max_chars=2 * MIB,
            mcp_max_message_bytes=2 * MIB,
        ) as toolbox,
    ):
        slow_call = asyncio.create_task(call_tool(toolbox, "slow"))
        async with asyncio.timeout(30):
            await server.started.wait()
        for name in ("repeat", "write_and_repeat"):
            result = await call_tool(toolbox, name, length=3 * MIB)
            assert (result.outcome, "is too large" in get_text(result)) == ("error", True), result
        assert server.effects == 1
        assert len(get_text(await call_tool(toolbox, "repeat", length=MIB + MIB // 2))) == MIB + MIB // 2
        server.release.set()
        assert get_text(await slow_call) == "done"
        assert toolbox.list_server_statuses()[0].state == "up"


EVENT = "event: message\r\ndata: %s\r\n\r\n"


@pytest.mark.parametrize(
    ("event", "expected_id"),
    [
        (EVENT % '{"jsonrpc":"2.0","id":3,"result":{"text":"%s"}}', 3),
        (EVENT % '{"result":{"id":7,"text":"%s"},"jsonrpc":"2.0","id":4}', 4),
        (
            EVENT.replace("\r", "") % '{\ndata:   "jsonrpc": "2.0",\ndata:   "id": 5,\ndata:   "result": "%s"\ndata: }',
            5,
        ),
        (EVENT.replace("\r\n", "\r") % '{"jsonrpc":"2.0","id":8,"error":"%s"}', 8),
        (EVENT % '{"jsonrpc":"2.0","method":"notifications/message","params":{"id":5,"data":"%s"}}', None),
        (EVENT % '{"jsonrpc":"2.0","id":6,"method":"ping","params":{"data":"%s"}}', None),
    ],
    ids=["id-first", "id-last", "several-lines", "carriage-returns", "notification", "request"],
)
@pytest.mark.parametrize("chunk_bytes", [1_000, 65_536])
async def test_large_event_is_replaced_by_an_error_if_it_is_a_response(
    event: str, expected_id: int | None, chunk_bytes: int
) -> None:
    small = EVENT % '{"jsonrpc":"2.0","id":1,"result":{}}'
    data = (small + event % ("x" * 2 * MIB) + small).encode()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        chunks = (data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))
        await StreamingResponse(iter(chunks), media_type="text/event-stream")(scope, receive, send)

    async with (
        serve_asgi(stream) as address,
        httpx2.AsyncClient(transport=EventLimitingTransport(httpx2.AsyncHTTPTransport(), MIB)) as client,
        client.sse(address) as events,
    ):
        ids = [json.loads(event.data)["id"] async for event in events]
    assert ids == [1, *([] if expected_id is None else [expected_id]), 1]


async def test_line_of_a_command_that_is_too_long_fails_only_its_own_call() -> None:
    async with connect_toolbox(make_stdio_config(), mcp_max_message_bytes=MIB) as toolbox:
        other_call = asyncio.create_task(call_tool(toolbox, "own_hang_read"))
        await wait_for_hanging_calls(toolbox, "own_hanging", 1)
        result = await call_tool(toolbox, "own_echo", text="x" * 2 * MIB)
        assert (result.outcome, "is too large" in get_text(result)) == ("error", True), result
        assert get_text(await call_tool(toolbox, "own_echo", text="hi")) == "hi"
        assert get_text(await call_tool(toolbox, "own_hanging")) == "1"
        other_call.cancel()


def make_oauth_transport(address: str) -> HttpsOnlyTransport:
    return HttpsOnlyTransport(ServerConfig(name="vault", url=f"{address}/mcp"))


async def test_answer_of_an_authorization_server_is_limited() -> None:
    app = Response(b"x" * 2 * MIB)
    async with serve_asgi(app) as address, httpx2.AsyncClient(transport=make_oauth_transport(address)) as client:
        with pytest.raises(httpx2.ReadError):
            await client.get(address)


async def test_long_refusal_is_truncated() -> None:
    app = Response(b"x" * 2 * MIB, status_code=400)
    async with serve_asgi(app) as address, httpx2.AsyncClient(transport=make_oauth_transport(address)) as client:
        response = await client.get(address)
    assert (response.status_code, len(response.content) <= MIB) == (400, True)
