"""Pages of MCP Apps that others wrote, in the console.

`make real-servers` installs them.
"""

import json
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.conftest import ServeSharedGateway
from tests.eventually import eventually
from tests.gateway_console.browsing import go, send, wait_for_end
from tests.gateway_console.conftest import chromium, page  # noqa: F401  # pytest finds fixtures by name
from tests.gateway_console.running_console import PICTURES, needs_chromium, run_console
from tests.real_servers.test_real_servers import NODE, require_installed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium]
APPS = {
    "budget": ("mcp-budget-allocator-server", "budget_get-budget-data", "Budget Allocator"),
    "react": ("mcp-server-basic-react", "react_get-time", "Server Time"),
}


@pytest.mark.parametrize("name", [require_installed(name) for name in APPS])
async def test_app_of_others_shows_the_result_of_its_tool(
    serve_shared_gateway: ServeSharedGateway,
    tmp_path: Path,
    page: Page,  # noqa: F811
    name: str,
) -> None:
    command, tool, text = APPS[name]
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {name: {"command": str(NODE / command), "args": ["--stdio"]}}}))
    gateway = await serve_shared_gateway(mcp_config=file, gateway_data_dir=tmp_path)

    async def find() -> str | None:
        names = [each["name"] for each in (await gateway.get("/api/v1/tools")).body["tools"]]
        return next((each for each in names if each in (tool, tool.partition("_")[2])), None)

    exposed = await eventually(find, timeout_seconds=200)
    async with run_console(gateway.base_url, tmp_path) as console:
        await go(page, console)
        await send(page, f"call {exposed} {{}}")
        await wait_for_end(page)
        await page.get_by_role("button", name="Open the app").click()
        await expect(page.frame_locator("iframe").get_by_text(text).first).to_be_visible()
        await page.screenshot(path=PICTURES / f"app-of-{name}.png")
