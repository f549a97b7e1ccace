"""Reasons of failed calls, for their callers."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.domain.messages import Principal, ToolResult
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import ToolCallRequest
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.gateway.mcp_client.test_toolbox import connect_toolbox, get_text
from tests.stack import serve_asgi


class FailingServer(RawServer):
    """Refuses the first call, and fails at the next ones."""

    def __init__(self) -> None:
        super().__init__(make_raw_tool("t"))
        self.statuses = [401, 500, 502]

    async def _respond(self, request: Request) -> Response:
        message: Any = await request.json() if request.method == "POST" else {}
        if message.get("method") != "tools/call":
            return await super()._respond(request)
        status = self.statuses.pop(0)
        if status == 500:
            error = {"code": -32050, "message": "the disk is full"}
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error}, status_code=500)
        return Response("<html>", status_code=status)


async def call(toolbox: McpToolbox) -> str:
    spec = toolbox.find_tool("t")
    assert spec is not None
    result = await toolbox.call_tool(ToolCallRequest(spec, {}, Principal("ada")))
    assert isinstance(result, ToolResult)
    return get_text(result)


async def test_failure_after_a_refusal_is_not_told_as_a_refusal() -> None:
    async with (
        serve_asgi(FailingServer()) as url,
        connect_toolbox(ServerConfig(name="s", prefix="", url=f"{url}/mcp")) as toolbox,
    ):
        assert "credentials" in await call(toolbox)
        assert "the disk is full" in await call(toolbox)
        assert "lost" in await call(toolbox)
