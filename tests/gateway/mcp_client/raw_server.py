"""An MCP server that sends what a test says, valid or not."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.stack import Gateway, serve_asgi, serve_gateway

JsonObject = dict[str, Any]
Answer = JsonObject | Callable[[JsonObject, Request], Any]
"""A result, or a function that makes one.

It gets the parameters and the request.
"""
_DISCONNECT_POLL_SECONDS = 0.05
METHOD_NOT_FOUND = {"code": -32601, "message": "Method not found"}


class RawError(Exception):
    """A JSON-RPC error that an answer raises."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})


def make_raw_tool(name: Any, **fields: Any) -> JsonObject:
    return {"name": name, "inputSchema": {"type": "object"}, **fields}


async def wait_unless_disconnected(event: asyncio.Event, request: Request, seconds: float = 60.0) -> bool:
    """Wait for an event or the time; False: the client left."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not event.is_set() and asyncio.get_running_loop().time() < deadline:
        if await request.is_disconnected():
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), _DISCONNECT_POLL_SECONDS)
    return True


class RawServer:
    """Answers each method as `answers` says; other methods are not found.

    A modern server answers `server/discover`, a legacy one `initialize`. A modern result gets the members that the
    protocol requires, unless the answer has them.
    """

    def __init__(self, *tools: Any, modern: bool = True, **answers: Answer) -> None:
        self.modern = modern
        self.tools = list(tools)
        self.capabilities: JsonObject = {"tools": {"listChanged": True}, "resources": {}, "prompts": {}}
        self.answers: dict[str, Answer] = {
            "tools/list": lambda _params, _request: {"tools": self.tools},
            "tools/call": lambda params, _request: {"content": [{"type": "text", "text": params["name"]}]},
            **{method.replace("__", "/"): answer for method, answer in answers.items()},
        }
        self.hints: JsonObject = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if modern else {}
        """Members of every result; the protocol of a modern server requires these."""
        self.calls: list[tuple[str, JsonObject]] = []
        """Method and parameters of each request."""
        self.streams: list[asyncio.Queue[JsonObject]] = []
        self.forgets_session = False
        """The next request gets 404, as in a forgotten session."""

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.calls)

    def notify(self, kind: str = "tools") -> None:
        """Announce a change of a list on every open stream."""
        for stream in self.streams:
            stream.put_nowait({"method": f"notifications/{kind}/list_changed"})

    def notify_updated(self, uri: str) -> None:
        """Announce an update of a resource on every open stream."""
        for stream in self.streams:
            stream.put_nowait({"method": "notifications/resources/updated", "params": {"uri": uri}})

    def cut_streams(self) -> None:
        """End every open stream without a final message."""
        for stream in self.streams:
            stream.put_nowait({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await (await self._respond(Request(scope, receive)))(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if request.method == "GET" and not self.modern:
            return StreamingResponse(self._stream_events({}), media_type="text/event-stream")
        if request.method != "POST":
            return Response(status_code=405)
        message = await request.json()
        if "id" not in message:
            return Response(status_code=202)
        method, params = message["method"], message.get("params") or {}
        self.calls.append((method, params))
        if method == "subscriptions/listen" and self.modern:
            meta = {"io.modelcontextprotocol/subscriptionId": message["id"]}
            stream = self._stream_events({"_meta": meta}, params["notifications"])
            return StreamingResponse(stream, media_type="text/event-stream")
        if self.forgets_session and method != "initialize":
            self.forgets_session = False
            error = {"code": -32600, "message": "Session not found"}
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error}, status_code=404)
        try:
            result = await self._answer(method, params, request)
            outcome = {"error": METHOD_NOT_FOUND} if result is None else {"result": result}
        except RawError as error:
            outcome = {"error": error.error}
        headers = {"Mcp-Session-Id": "raw"} if method == "initialize" else None
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], **outcome}, headers=headers)

    async def _stream_events(self, params: JsonObject, wanted: JsonObject | None = None) -> AsyncGenerator[str]:
        stream: asyncio.Queue[JsonObject] = asyncio.Queue()
        self.streams.append(stream)
        if wanted:
            accepted = {**params, "notifications": wanted}
            stream.put_nowait({"method": "notifications/subscriptions/acknowledged", "params": accepted})
        try:
            while sent := await stream.get():
                message = {"jsonrpc": "2.0", **sent, "params": {**params, **sent.get("params", {})}}
                yield f"event: message\ndata: {json.dumps(message)}\n\n"
        finally:
            self.streams.remove(stream)

    async def _answer(self, method: str, params: JsonObject, request: Request) -> JsonObject | None:
        if method == "initialize" and not self.modern:
            info = {"name": "raw", "version": "1"}
            return {"protocolVersion": "2025-11-25", "capabilities": self.capabilities, "serverInfo": info}
        if method == "server/discover" and self.modern:
            return {**self.hints, "supportedVersions": ["2026-07-28"], "capabilities": self.capabilities}
        answer = self.answers.get(method)
        result: Any = answer(params, request) if callable(answer) else answer
        if inspect.isawaitable(result):
            result = await result
        return None if result is None else {**self.hints, **result}


@asynccontextmanager
async def serve_raw(
    database_url: str,
    simulator: Simulator,
    tmp_path: Path,
    servers: dict[str, tuple[RawServer, JsonObject]],
    **settings: Any,
) -> AsyncGenerator[Gateway]:
    """Serve a gateway with raw servers, and wait until all are up.

    Each server has its entry in the file.
    """
    async with AsyncExitStack() as stack:
        entries: dict[str, JsonObject] = {}
        for name, (server, entry) in servers.items():
            address = await stack.enter_async_context(serve_asgi(server))
            entries[name] = {"url": f"{address}/mcp", **entry}
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": entries}))
        own = {"mcp_config": file, "gateway_data_dir": tmp_path, **settings}
        gateway = await stack.enter_async_context(serve_gateway(database_url, simulator, None, **own))
        await eventually(lambda: all(status.state == "up" for status in gateway.state.toolbox.list_server_statuses()))
        yield gateway
