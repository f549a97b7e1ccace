"""An MCP server whose effects are counted.

Some of its tools do harm.

`python -m tests.chaos.effects PORT FILE` appends a line to the file for each effect.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations
from starlette.requests import Request

IMMORTAL = "CHAOS_IMMORTAL"
"""Environment variable of a process that `kill_client` does not kill."""
_PAUSE_SECONDS = 0.3


def create_server(file: str) -> MCPServer:
    server: MCPServer = MCPServer("effects", log_level="ERROR")

    @server.tool()
    async def pay(order: str) -> str:
        """Pay an order. Each call takes effect."""
        await asyncio.sleep(_PAUSE_SECONDS)
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, f"{order}\n".encode())
        finally:
            os.close(descriptor)
        await asyncio.sleep(_PAUSE_SECONDS)
        return f"Paid {order}. " + "The receipt has many words. " * 10

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def report(kilobytes: int) -> str:
        """Write a report.

        The answer contains it twice: as text, and structured.
        """
        return "x" * (1024 * kilobytes)

    @server.tool(annotations=ToolAnnotations(idempotent_hint=True))
    async def kill_client(ctx: Context[Any]) -> str:
        """Kill the process that calls."""
        request = ctx.request_context.request
        assert isinstance(request, Request)
        assert request.client is not None
        await asyncio.to_thread(_kill_owner, request.client.port)
        return "The client lives."

    return server


def _kill_owner(port: int) -> None:
    """Kill the process that owns a local port, unless it is immortal."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == f"0100007F:{port:04X}" and row[9] != "0"}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            links = {os.readlink(link) for link in (process / "fd").iterdir()}
            if links & sockets and IMMORTAL.encode() not in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    app = create_server(sys.argv[2]).streamable_http_app()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", timeout_graceful_shutdown=1)
