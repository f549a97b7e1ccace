"""Small MCP servers for the tests: in this process, or as a process of their own (`python -m … PORT`)."""

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


def handshake_only(inner: ASGIApp) -> ASGIApp:
    """A server that does not know protocol 2026-07-28: what tells of that is taken out of every request."""
    told = (b"mcp-method", b"mcp-name")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            version = (b"mcp-protocol-version", b"2026-07-28")
            headers = [
                (name, value) for name, value in scope["headers"] if name not in told and (name, value) != version
            ]
            scope = {**scope, "headers": headers}
        await inner(scope, receive, send)

    return app


class Place(BaseModel):
    row: Literal["front", "back"]


class Trial:
    """A server whose calls the test can hold, and that remembers what came."""

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
        self._register(self.mcp)

    def app(self, *, modern: bool = True) -> ASGIApp:
        """The server over HTTP; `modern=False`: one that knows only the handshake era."""
        served = self.mcp.streamable_http_app()
        inner = served if modern else handshake_only(served)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                headers = dict(scope["headers"])
                method = headers.get(b"mcp-method", b"").decode()
                self.requests.append((method, headers.get(b"authorization", b"").decode() or None))
            await inner(scope, receive, send)

        return app

    async def add_tool(self, name: str) -> None:
        async def added() -> str:
            return name

        self.mcp.add_tool(added, name=name, description=f"The tool {name}.")
        await self.bus.publish(ToolsListChanged())

    async def redefine(self, name: str, description: str) -> None:
        """Give a tool another description, and tell of it."""
        tool = self.mcp._tool_manager.get_tool(name)
        assert tool is not None
        tool.description = description
        await self.bus.publish(ToolsListChanged())

    def _register(self, mcp: MCPServer[Any]) -> None:
        @mcp.tool(annotations=READ_ONLY)
        async def echo(text: str) -> str:
            """Say it again."""
            return text

        @mcp.tool(annotations=READ_ONLY)
        async def whoami(ctx: Context[Any]) -> str:
            """Who is calling."""
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
            """How many calls hang."""
            return str(self.hanging)

        @mcp.resource("trial://greeting", mime_type="text/plain")
        async def greeting() -> str:
            """A text."""
            return "Good day."

        @mcp.resource("trial://greeting/{name}")
        async def greeting_of(name: str) -> str:
            """A text for somebody."""
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
            """Take as long as the test wants."""
            self.started.set()
            await self.release.wait()
            return "done"

        @mcp.tool()
        async def crash() -> str:
            """Break."""
            raise ValueError("internal detail")

        @mcp.tool()
        async def refuse() -> str:
            """Say no."""
            raise ToolError("No, because of the weather.")

        @mcp.tool()
        async def chatter(ctx: Context[Any]) -> str:
            """Tell of its progress."""
            await ctx.report_progress(1, 2, "half")
            await ctx.info("a log line")
            await ctx.report_progress(2, 2, "whole")
            return "done"

        @mcp.tool()
        async def reserve(seats: int, ctx: Context[Any]) -> str:
            """Reserve seats, once somebody says where."""
            answer = await ctx.elicit(f"Where shall the {seats} seats be?", Place)
            self.answers.append((seats, answer.action))
            return f"{seats} at the {answer.data.row}" if answer.action == "accept" else "nothing reserved"

        @mcp.tool(structured_output=False)
        async def picture() -> CallToolResult:
            """Text and an image."""
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
    """As servers of 2024 did it."""
    app = Trial().mcp.sse_app()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=0)
    await uvicorn.Server(config).serve()


async def serve(port: int, *, modern: bool) -> None:
    config = uvicorn.Config(
        Trial().app(modern=modern), host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=0
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    if "stdio" in sys.argv:
        print("the trial server starts", file=sys.stderr)
        Trial().mcp.run("stdio")
    elif "sse" in sys.argv:
        asyncio.run(serve_sse(int(sys.argv[1])))
    else:
        asyncio.run(serve(int(sys.argv[1]), modern="legacy" not in sys.argv))
