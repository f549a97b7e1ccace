"""Questions of MCP servers that lead a person to a web page."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestURLParams, InputRequiredResult

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol
from tests.stack import Gateway, serve_asgi, serve_gateway

Serve = Callable[[bool], AbstractAsyncContextManager[Gateway]]


def create_app(is_modern: bool) -> Any:
    mcp: MCPServer[Any] = MCPServer("asking", log_level="ERROR")

    @mcp.tool(structured_output=False)
    async def visit(url: str, ctx: Context[Any]) -> Any:
        """Ask the user to visit a page."""
        if not is_modern:
            return f"answered {(await ctx.elicit_url('Visit this page.', url, 'one')).action}"
        if ctx.input_responses:
            return "answered accept"
        request = ElicitRequest(params=ElicitRequestURLParams(message="Visit it.", url=url, elicitation_id="one"))
        return InputRequiredResult(input_requests={"one": request})

    app = mcp.streamable_http_app()
    return app if is_modern else hide_modern_protocol(app)


@pytest.fixture
def serve(database_url: str, simulator: Simulator) -> Serve:
    @asynccontextmanager
    async def serve_era(is_modern: bool) -> AsyncGenerator[Gateway]:
        async with (
            serve_asgi(create_app(is_modern)) as address,
            serve_gateway(database_url, simulator, f"{address}/mcp", tools_server_secret=None) as gateway,
        ):
            await eventually(lambda: gateway.state.toolbox.find_tool("visit"))
            yield gateway

    return serve_era


HOSTILE_URLS = [
    "javascript:alert(document.cookie)",
    "JavaScript://example.com/%0aalert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    "file:///etc/passwd",
    "//evil.example/page",
    "https:evil.example",
    "https:///evil.example",
    "https://gateway.example@evil.example/",
    "https://gateway.example\\@evil.example/",
    "https://evil.example/\u202egnp.exe",
    "https://evil.example:port/",
    "page",
    "",
]


@pytest.mark.parametrize("is_modern", [True, False], ids=["modern", "legacy"])
async def test_question_that_leads_to_no_web_page_is_refused(serve: Serve, is_modern: bool) -> None:
    async with serve(is_modern) as gateway:
        for url in HOSTILE_URLS:
            async with asyncio.timeout(30):
                reply = await gateway.chat_stream(f"call visit {_to_json(url)}")
            assert reply.get_event_data("input.required") == [], url
            (result,) = reply.get_event_data("tool.result")
            assert "answered accept" not in str(result["content"]), url
            assert reply.events[-2].type == "turn.completed", url


@pytest.mark.parametrize("is_modern", [True, False], ids=["modern", "legacy"])
async def test_page_of_a_server_is_not_presented_as_a_sign_in_of_the_gateway(serve: Serve, is_modern: bool) -> None:
    async with serve(is_modern) as gateway:
        prompt = f"call visit {_to_json('https://pay.example/order?id=1')}"
        async with gateway.stream(prompt, on_disconnect="continue") as stream:
            question = (await stream.read_until("input.required")).data
            turn_id = stream.response.headers["X-Turn-Id"]
            assert (question["kind"], question["url"]) == ("url", "https://pay.example/order?id=1")
            body = {"input_id": question["input_id"], "action": "accept"}
            assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
        events = await read_turn_events(gateway, turn_id)
        (result,) = [event.data for event in events if event.type == "tool.result"]
        assert "answered accept" in result["content"][0]["text"]


def _to_json(url: str) -> str:
    return json.dumps({"url": url})
