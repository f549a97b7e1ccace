"""MCP servers with many tools, in one process.

Their paths are `/0/mcp`, `/1/mcp` and so on.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvicorn
from mcp.server import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

_DESCRIPTION = (
    "Look up the {name} records of a customer. Returns the newest first, with their state and the person in charge."
    " Use it for questions about {name}, not for changes."
)


def create_server(number: int, tool_count: int) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer(f"server-{number}", log_level="ERROR")

    def look_up(customer: str, state: str = "open", limit: int = 20, newest_first: bool = True) -> str:
        return f"{customer}: {limit} {state} records, newest first: {newest_first}"

    for tool in range(tool_count):
        name = f"topic_{number}_{tool}"
        server.add_tool(look_up, name=f"look_up_{name}", description=_DESCRIPTION.format(name=name))
    return server


def create_app(server_count: int, tool_count: int) -> Starlette:
    apps = [
        create_server(number, tool_count).streamable_http_app(stateless_http=True) for number in range(server_count)
    ]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    async def report_ready(_request: Request) -> Response:
        return Response()

    mounts = [Mount(f"/{number}", app) for number, app in enumerate(apps)]
    return Starlette(routes=[Route("/ready", report_ready), *mounts], lifespan=lifespan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--port", "--servers", "--tools"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(create_app(options.servers, options.tools), port=options.port, log_level="warning", access_log=False)
