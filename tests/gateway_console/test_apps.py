"""Pages of MCP Apps by the official SDK, in the chat."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, TextContent
from playwright.async_api import Page, expect

from tests.e2e.node import bundle, require_node
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol
from tests.gateway_console.browsing import go, send
from tests.gateway_console.running_console import PICTURES, needs_chromium
from tests.stack import Gateway, serve_asgi

pytestmark = [
    pytest.mark.faults,
    pytest.mark.node,
    pytest.mark.timeout(300),
    needs_chromium,
    require_node("@modelcontextprotocol/ext-apps"),
]
SOURCE = Path(__file__).parent / "sdk_app.js"
URI = "ui://seats/page"


async def build_page(directory: Path) -> str:
    await bundle(SOURCE, directory / "app.js", "--minify", "--format=iife")
    script = (directory / "app.js").read_text().replace("</script", "<\\/script")
    places = "".join(f"<p id={name}></p>" for name in ("host", "input", "result", "called"))
    return f"<!doctype html>{places}<script>{script}</script>"


def make_server(page: str) -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("seats", log_level="ERROR")
    meta = {"ui": {"resourceUri": URI}}

    @mcp.tool(meta=meta)
    async def list_seats(row: str) -> CallToolResult:
        """List the seats of a row."""
        return CallToolResult(content=[TextContent(text="12 seats")], structured_content={"row": row, "seats": 12})

    @mcp.tool(meta=meta)
    async def count_seats() -> CallToolResult:
        """Count all seats."""
        return CallToolResult(content=[TextContent(text="480 seats")])

    @mcp.resource(URI, mime_type="text/html;profile=mcp-app")
    async def show() -> str:
        """The page."""
        return page

    return mcp


@pytest.fixture(scope="module")
async def seats(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[None]:
    server = make_server(await build_page(tmp_path_factory.mktemp("app")))
    async with serve_asgi(hide_modern_protocol(server.streamable_http_app())) as address:
        added = await gateway.post("/api/v1/mcp/servers", {"name": "seats", "url": f"{address}/mcp"})
        assert added.status == 201, added.body

        async def is_up() -> bool:
            return "seats_list_seats" in str((await gateway.get("/api/v1/tools")).body)

        await eventually(is_up, timeout_seconds=60)
        yield


@pytest.mark.parametrize(
    ("call", "given", "result"),
    [
        ('seats_list_seats {"row": "A"}', '{"row":"A"}', '{"row":"A","seats":12}'),
        ("seats_count_seats {}", "{}", "480 seats"),
    ],
    ids=["structured", "text"],
)
async def test_page_of_the_sdk_gets_its_call_and_calls_no_tool(
    console: str, page: Page, seats: None, call: str, given: str, result: str
) -> None:
    await go(page, console)
    await send(page, f"call {call}")
    await page.get_by_role("button", name="Open the app").click()
    frame = page.frame_locator("iframe")
    await expect(frame.locator("#host")).to_have_text("agent-gateway-console light")
    await expect(frame.locator("#input")).to_have_text(given)
    await expect(frame.locator("#result")).to_have_text(result)
    await expect(frame.locator("#called")).to_contain_text("refused")
    height = "parseFloat(getComputedStyle(document.querySelector('iframe')).height)"
    await page.wait_for_function(f"{height} < 300")  # the SDK tells its size
    await page.screenshot(path=PICTURES / "sdk-app.png")
