"""An MCP server that uses the optional parts of the protocol.

`python -m tests.gateway.mcp_client.rich_server` speaks over stdio.
"""

import asyncio
import json
from typing import Any

import mcp.types as t
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol

JsonObject = dict[str, Any]
INSTRUCTIONS = "First list, then show.\n\n> Quoted line, and a very long one: " + "rich " * 2_000
ICON = {"src": "https://example.com/i.png", "mimeType": "image/png", "sizes": ["48x48"], "theme": "dark"}
TOOL_META = {"ui": {"resourceUri": "ui://show/view.html"}, "com.example/rank": [1, {"deep": None}]}
RESULT_META = {"com.example/widget": {"rows": [1, 2]}, "trace": "abc"}
BLOCK = {
    "type": "text",
    "text": "shown",
    "annotations": {"audience": ["user"], "priority": 0.5},
    "_meta": {"com.example/block": 1},
}
LOG_OBJECT = {"event": "indexed", "files": [1, 2], "nested": {"ok": True}}
VISIT_ID = "visit-7f3a"
TOOL = {
    "name": "show",
    "title": "Show",
    "description": "Show all.",
    "inputSchema": {"type": "object"},
    "icons": [ICON],
    "annotations": {"title": "Show it", "readOnlyHint": True},
    "execution": {"taskSupport": "optional"},
    "_meta": TOOL_META,
}


class RichServer:
    """Records what arrives; `log_levels` are those that clients asked for."""

    def __init__(self) -> None:
        self.metas: list[JsonObject] = []
        self.contexts: list[JsonObject | None] = []
        self.log_levels: list[str] = []
        self.server: Server[Any] = Server(
            "rich",
            version="1",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete,
        )
        self.server.add_request_handler("logging/setLevel", t.SetLevelRequestParams, self._set_level)

    def create_app(self, *, modern: bool) -> ASGIApp:
        """Create an HTTP app; with `modern=False` it knows only the legacy protocol."""
        manager = StreamableHTTPSessionManager(self.server)
        inner: ASGIApp = StreamableHTTPASGIApp(manager)
        inner = inner if modern else hide_modern_protocol(inner)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await inner(scope, receive, send)
                return
            await receive()
            async with manager.run():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})

        return app

    async def _list_tools(self, _ctx: Any, _params: Any) -> t.ListToolsResult:
        names = ("show", "log", "visit")
        return t.ListToolsResult.model_validate({"tools": [{**TOOL, "name": name} for name in names]})

    async def _call_tool(self, ctx: Any, params: t.CallToolRequestParams) -> t.CallToolResult:
        self.metas.append(ctx.params.get("_meta") or {})
        if params.name == "log":
            for level, data in (("debug", "detail"), ("info", LOG_OBJECT), ("error", ["a", 1])):
                await ctx.session.send_log_message(level, data, "app.db", related_request_id=ctx.request_id)
        if params.name == "visit":
            answer = await ctx.session.elicit_url("Please pay.", "https://pay.example/1", VISIT_ID, ctx.request_id)
            await ctx.session.send_elicit_complete(VISIT_ID, ctx.request_id)
            return t.CallToolResult(content=[t.TextContent(type="text", text=answer.action)])
        meta = json.dumps(sorted(ctx.params.get("_meta") or {}))
        blocks = [BLOCK, {"type": "text", "text": meta}]
        return t.CallToolResult.model_validate({"content": blocks, "_meta": RESULT_META})

    async def _list_prompts(self, _ctx: Any, _params: Any) -> t.ListPromptsResult:
        prompt = {"name": "p", "icons": [ICON], "_meta": TOOL_META, "arguments": [{"name": "owner"}, {"name": "repo"}]}
        return t.ListPromptsResult.model_validate({"prompts": [prompt]})

    async def _get_prompt(self, ctx: Any, _params: Any) -> t.GetPromptResult:
        self.metas.append(ctx.params.get("_meta") or {})
        message = {"role": "user", "content": BLOCK}
        return t.GetPromptResult.model_validate({"messages": [message], "_meta": RESULT_META})

    async def _complete(self, _ctx: Any, params: t.CompleteRequestParams) -> t.CompleteResult:
        self.contexts.append(params.context and params.context.arguments)
        return t.CompleteResult.model_validate({"completion": {"values": ["x"], "total": 1}})

    async def _set_level(self, _ctx: Any, params: t.SetLevelRequestParams) -> t.EmptyResult:
        self.log_levels.append(params.level)
        return t.EmptyResult()


async def serve_stdio() -> None:
    server = RichServer().server
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(serve_stdio())
