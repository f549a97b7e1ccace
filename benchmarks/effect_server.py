"""MCP server with a slow tool that records its runs.

The line is written at once, before the tool waits: a worker that is killed meanwhile has caused the effect without
knowing it.
"""

import argparse
import asyncio
import time
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from starlette.requests import Request
from starlette.responses import Response


def create_server(effects: Path, seconds: float) -> MCPServer[object]:
    server: MCPServer[object] = MCPServer("effects")

    @server.tool()
    async def slow_calculator(expression: str) -> str:
        """Calculate, slowly."""
        with effects.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        await asyncio.sleep(seconds)
        return f"{expression} = 437"

    return server


async def report_ready(_request: Request) -> Response:
    return Response()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--effects", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    app = create_server(options.effects, options.seconds).streamable_http_app(stateless_http=True)
    app.add_route("/ready", report_ready)
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)
