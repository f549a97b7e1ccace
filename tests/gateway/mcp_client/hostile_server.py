"""An MCP server that lists and answers exactly what a test says."""

import asyncio
from typing import Any

import mcp.types as t
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def make_tool(name: str, description: str = "A tool.", **fields: Any) -> t.Tool:
    return t.Tool(name=name, description=description, **{"input_schema": ANY_OBJECT, **fields})


class HostileServer:
    """A server whose definitions and answers are set by the test."""

    def __init__(self, *tools: t.Tool, instructions: str | None = None) -> None:
        self.tools = list(tools)
        self.pages: list[list[t.Tool]] | None = None
        self.result = t.CallToolResult(content=[t.TextContent(type="text", text="done")])
        self.question: dict[str, Any] | None = None
        self.resources: list[t.Resource] = []
        self.templates: list[t.ResourceTemplate] = []
        self.calls: list[dict[str, Any]] = []
        self._bus = InMemorySubscriptionBus()
        self.server: Server[Any] = Server(
            "hostile",
            instructions=instructions,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_subscriptions_listen=ListenHandler(self._bus),
        )

    def create_app(self, **options: Any) -> Any:
        return self.server.streamable_http_app(**options)

    async def replace_tools(self, *tools: t.Tool) -> None:
        """Change the tools and notify clients."""
        self.tools = list(tools)
        await self._bus.publish(ToolsListChanged())

    async def _list_tools(self, _ctx: Any, params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
        if self.pages is None:
            return t.ListToolsResult(tools=self.tools)
        index = int(params.cursor) if params is not None and params.cursor else 0
        next_cursor = str(index + 1) if index + 1 < len(self.pages) else None
        return t.ListToolsResult(tools=self.pages[index], next_cursor=next_cursor)

    async def _call_tool(self, _ctx: Any, params: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
        await asyncio.sleep(0)
        self.calls.append(params.arguments or {})
        if self.question is None or params.input_responses:
            return self.result
        form = {"mode": "form", "message": "Well?", "requestedSchema": self.question}
        requests = {"q": {"method": "elicitation/create", "params": form}}
        return t.InputRequiredResult.model_validate({"resultType": "input_required", "inputRequests": requests})

    async def _list_resources(self, _ctx: Any, _params: Any) -> t.ListResourcesResult:
        return t.ListResourcesResult(resources=self.resources)

    async def _list_templates(self, _ctx: Any, _params: Any) -> t.ListResourceTemplatesResult:
        return t.ListResourceTemplatesResult(resource_templates=self.templates)
