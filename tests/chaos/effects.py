"""An MCP server with a tool whose effects are counted.

`python -m tests.chaos.effects PORT FILE` appends a line to the file for each effect.
"""

import asyncio
import os
import sys

import uvicorn
from mcp.server.mcpserver import MCPServer

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

    return server


if __name__ == "__main__":
    app = create_server(sys.argv[2]).streamable_http_app()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", timeout_graceful_shutdown=1)
