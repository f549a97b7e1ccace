"""MCP server of both eras that asks for sampling and roots."""

import asyncio
import contextlib
import json
from typing import Any

from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequiredResult,
    ListRootsRequest,
    NotificationParams,
    SamplingMessage,
    TextContent,
    Tool,
)
from starlette.types import ASGIApp

from tests.gateway.mcp_client.mcp_servers import READ_ONLY, hide_modern_protocol

LOOKUP = Tool(name="lookup", description="Looks up.", input_schema={"type": "object"})


class SamplingServer:
    """Counts its calls, and keeps the answers of the model."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers: list[Any] = []
        self.capabilities: list[Any] = []

    def create_app(self, *, modern: bool) -> ASGIApp:
        """Create the HTTP app; with `modern=False` it knows only the legacy protocol."""
        mcp: MCPServer[Any] = MCPServer("sampling", log_level="ERROR")

        async def ask_model(ctx: Context[Any], prompt: str, **options: Any) -> Any:
            """The model's answer; in the current protocol, None until it is there."""
            self.capabilities.append(ctx.session.client_capabilities)
            messages = options.pop("messages", None) or [SamplingMessage(role="user", content=TextContent(text=prompt))]
            options = {"max_tokens": 50, **options}
            if modern:
                answer = (ctx.input_responses or {}).get("answer")
                if answer is None:
                    params = CreateMessageRequestParams(messages=messages, **options)
                    return InputRequiredResult(input_requests={"answer": CreateMessageRequest(params=params)})
            else:
                answer = await ctx.session.create_message(
                    messages=messages, **options, related_request_id=ctx.request_context.request_id
                )
            self.answers.append(answer)
            return answer

        @mcp.tool(structured_output=False)
        async def summarize(ctx: Context[Any], prompt: str, max_tokens: int = 50) -> str | InputRequiredResult:
            """Summarize with the model."""
            self.calls += 1
            answer = await ask_model(ctx, prompt, max_tokens=max_tokens, system_prompt="Summarize.")
            return answer if isinstance(answer, InputRequiredResult) else f"summary: {answer.content.text}"

        @mcp.tool(structured_output=False, annotations=READ_ONLY)
        async def recall(ctx: Context[Any], prompt: str) -> str | InputRequiredResult:
            """Ask the model, without an effect."""
            self.calls += 1
            answer = await ask_model(ctx, prompt)
            return answer if isinstance(answer, InputRequiredResult) else f"recalled: {answer.content.text}"

        @mcp.tool(structured_output=False)
        async def look_up(ctx: Context[Any], prompt: str) -> str | InputRequiredResult:
            """Let the model call a tool of the server."""
            answer = await ask_model(ctx, prompt, tools=[LOOKUP])
            if isinstance(answer, InputRequiredResult):
                return answer
            (use,) = answer.content_as_list
            return f"{answer.stop_reason} {use.name} {json.dumps(use.input)}"

        @mcp.tool(structured_output=False)
        async def insist(ctx: Context[Any]) -> str | InputRequiredResult:
            """Ask the model for ever."""
            self.calls += 1
            if modern:
                message = SamplingMessage(role="user", content=TextContent(text="again"))
                params = CreateMessageRequestParams(messages=[message], max_tokens=5)
                return InputRequiredResult(input_requests={"answer": CreateMessageRequest(params=params)})
            while True:
                await ask_model(ctx, "again")

        @mcp.tool(structured_output=False)
        async def ask_both(ctx: Context[Any]) -> str | InputRequiredResult:
            """Ask a person and the model at once."""
            responses: Any = ctx.input_responses or {}
            if not responses:
                form = ElicitRequestFormParams(message="Which?", requested_schema={"type": "object", "properties": {}})
                message = SamplingMessage(role="user", content=TextContent(text="hello"))
                params = CreateMessageRequestParams(messages=[message], max_tokens=50)
                return InputRequiredResult(
                    input_requests={
                        "form": ElicitRequest(params=form),
                        "answer": CreateMessageRequest(params=params),
                        "roots": ListRootsRequest(),
                    }
                )
            return f"{responses['form'].action} {responses['answer'].content.text} {responses['roots'].roots[0].uri}"

        @mcp.tool(structured_output=False)
        async def show_roots(ctx: Context[Any]) -> str | InputRequiredResult:
            """Show the client's roots."""
            if modern:
                answer: Any = (ctx.input_responses or {}).get("roots")
                if answer is None:
                    return InputRequiredResult(input_requests={"roots": ListRootsRequest()})
            else:
                answer = await ctx.session.list_roots()
            return " ".join(str(root.uri) for root in answer.roots)

        remembered: dict[Any, str] = {}
        reading: set[asyncio.Task[None]] = set()

        async def remember(session: Any, key: Any) -> None:
            for _ in range(10):  # a request before the host listens is lost
                with contextlib.suppress(MCPError, TimeoutError):  # the host refuses, or does not listen
                    async with asyncio.timeout(3.0):
                        remembered[key] = " ".join(str(root.uri) for root in (await session.list_roots()).roots)
                        return

        async def on_roots(ctx: Any, _params: Any) -> None:
            """Read the roots for the session, as many servers do."""
            capabilities = ctx.session.client_capabilities
            if capabilities is not None and capabilities.roots is not None:
                task = asyncio.create_task(remember(ctx.session, ctx.request.headers.get("mcp-session-id")))
                reading.add(task)
                task.add_done_callback(reading.discard)

        for method in ("notifications/initialized", "notifications/roots/list_changed"):
            mcp._lowlevel_server.add_notification_handler(method, NotificationParams, on_roots)

        @mcp.tool(structured_output=False)
        async def show_remembered(ctx: Context[Any]) -> str:
            """Show the roots that the session has remembered."""
            request = ctx.request_context.request
            return remembered.get(request and request.headers.get("mcp-session-id"), "none")

        app = mcp.streamable_http_app()
        return app if modern else hide_modern_protocol(app)
