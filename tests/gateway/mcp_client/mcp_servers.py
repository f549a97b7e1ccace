"""MCP servers for tests, in this process or another.

`python -m tests.gateway.mcp_client.mcp_servers PORT` serves one.
"""

import asyncio
import sys
from typing import Any, Literal

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.subscriptions import InMemorySubscriptionBus, ToolsListChanged
from mcp.types import (
    CallToolResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    ImageContent,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

READ_ONLY = ToolAnnotations(read_only_hint=True)


def hide_modern_protocol(inner: ASGIApp) -> ASGIApp:
    """Remove the headers of protocol 2026-07-28 from every request."""
    modern_headers = (b"mcp-method", b"mcp-name")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            version = (b"mcp-protocol-version", b"2026-07-28")
            headers = [
                (name, value)
                for name, value in scope["headers"]
                if name not in modern_headers and (name, value) != version
            ]
            scope = {**scope, "headers": headers}
        await inner(scope, receive, send)

    return app


class SeatChoice(BaseModel):
    row: Literal["front", "back"]


class TrialServer:
    """A server whose calls the test can suspend; it records requests."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.mcp: MCPServer[Any] = MCPServer(
            "trial", instructions="Trial instructions.", log_level="ERROR", subscriptions=self.bus
        )
        self.hanging = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.requests: list[tuple[str, str | None]] = []
        self.answers: list[tuple[int, str]] = []
        self._register_tools(self.mcp)

    def create_app(self, *, modern: bool = True) -> ASGIApp:
        """Create the HTTP app; with `modern=False` it knows only the legacy protocol."""
        http_app = self.mcp.streamable_http_app()
        inner = http_app if modern else hide_modern_protocol(http_app)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                headers = dict(scope["headers"])
                method = headers.get(b"mcp-method", b"").decode()
                self.requests.append((method, headers.get(b"authorization", b"").decode() or None))
            await inner(scope, receive, send)

        return app

    async def add_tool(self, name: str) -> None:
        async def return_name() -> str:
            return name

        self.mcp.add_tool(return_name, name=name, description=f"The tool {name}.")
        await self.bus.publish(ToolsListChanged())

    async def change_description(self, name: str, description: str) -> None:
        """Change the description of a tool and notify clients."""
        tool = self.mcp._tool_manager.get_tool(name)
        assert tool is not None
        tool.description = description
        await self.bus.publish(ToolsListChanged())

    def _register_tools(self, mcp: MCPServer[Any]) -> None:
        @mcp.tool(annotations=READ_ONLY)
        async def echo(text: str) -> str:
            """Say it again."""
            return text

        @mcp.tool(annotations=READ_ONLY)
        async def whoami(ctx: Context[Any]) -> str:
            """Return the caller's Authorization header."""
            request = ctx.request_context.request
            assert isinstance(request, Request)
            await asyncio.sleep(0)
            return request.headers.get("authorization", "nobody")

        @mcp.tool(annotations=READ_ONLY)
        async def hang_read() -> str:
            """Never answer; changes nothing."""
            return await self._hang()

        @mcp.tool()
        async def hang_write() -> str:
            """Never answer; may have changed something."""
            return await self._hang()

        @mcp.tool(annotations=READ_ONLY)
        async def hanging() -> str:
            """Return the number of hanging calls."""
            return str(self.hanging)

        @mcp.resource("trial://greeting", mime_type="text/plain")
        async def greeting() -> str:
            """A text."""
            return "Good day."

        @mcp.resource("trial://greeting/{name}")
        async def greeting_for(name: str) -> str:
            """A greeting by name."""
            return f"Good day, {name}."

        @mcp.prompt()
        async def summary(subject: str) -> str:
            """Ask for a summary."""
            return f"Sum up {subject}."

        @mcp.completion()
        async def complete(
            ref: Any, argument: CompletionArgument, _context: CompletionContext | None
        ) -> Completion | None:
            names = [name for name in ("camels", "zebras") if name.startswith(argument.value)]
            return Completion(values=names)

        @mcp.tool()
        async def slow() -> str:
            """Answer once the test allows it."""
            self.started.set()
            await self.release.wait()
            return "done"

        @mcp.tool()
        async def crash() -> str:
            """Raise an internal error."""
            raise ValueError("internal detail")

        @mcp.tool()
        async def refuse() -> str:
            """Raise an error for the model."""
            raise ToolError("No, because of the weather.")

        @mcp.tool()
        async def chatter(ctx: Context[Any]) -> str:
            """Report progress and log a line."""
            await ctx.report_progress(1, 2, "half")
            await ctx.info("a log line")
            await ctx.report_progress(2, 2, "whole")
            return "done"

        @mcp.tool()
        async def reserve(seats: int, ctx: Context[Any]) -> str:
            """Reserve seats after asking for their row."""
            answer = await ctx.elicit(f"Where shall the {seats} seats be?", SeatChoice)
            self.answers.append((seats, answer.action))
            return f"{seats} at the {answer.data.row}" if answer.action == "accept" else "nothing reserved"

        @mcp.tool(structured_output=False)
        async def picture() -> CallToolResult:
            """Return text and an image."""
            image = ImageContent(type="image", data="aGk=", mime_type="image/png")
            return CallToolResult(content=[TextContent(type="text", text="see"), image])

    async def _hang(self) -> str:
        self.hanging += 1
        self.started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.hanging -= 1
        return "late"


async def serve_sse(port: int) -> None:
    """Serve the HTTP+SSE transport of protocol 2024-11-05."""
    app = TrialServer().mcp.sse_app()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=0)
    await uvicorn.Server(config).serve()


async def serve_http(port: int, *, modern: bool) -> None:
    config = uvicorn.Config(
        TrialServer().create_app(modern=modern),
        host="127.0.0.1",
        port=port,
        log_level="critical",
        timeout_graceful_shutdown=0,
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    if "stdio" in sys.argv:
        print("the trial server starts", file=sys.stderr)
        TrialServer().mcp.run("stdio")
    elif "sse" in sys.argv:
        asyncio.run(serve_sse(int(sys.argv[1])))
    else:
        asyncio.run(serve_http(int(sys.argv[1]), modern="legacy" not in sys.argv))
