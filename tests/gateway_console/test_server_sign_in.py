"""Signing in to MCP servers with OAuth, from the console."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gateway.simulator import Simulator
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.gateway_console.browsing import go, needs_axe, send, take_pictures, wait_for_end
from tests.gateway_console.running_console import needs_chromium, run_console
from tests.stack import find_free_port, serve_asgi, serve_gateway

pytestmark = [pytest.mark.database, pytest.mark.faults, pytest.mark.timeout(300), needs_chromium, needs_axe]


@pytest.fixture
async def console(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[str]:
    """Run a console whose only MCP server asks for a sign-in."""
    port, server = find_free_port(), OAuthMcpServer(vault_port := find_free_port())
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"vault": {"url": server.url}}}))
    settings = {"gateway_public_url": f"http://127.0.0.1:{port}", "gateway_data_dir": tmp_path}
    async with (
        serve_asgi(server.create_app(), vault_port),
        serve_gateway(database_url, simulator, None, port=port, mcp_config=file, **settings) as gateway,
        run_console(gateway.base_url, tmp_path) as url,
    ):
        yield url


async def consent(page: Page, link: str) -> None:
    """Follow a link to a sign-in in its new tab, and consent."""
    async with page.context.expect_page() as opened:
        await page.get_by_role("link", name=link).click()
    tab = await opened.value
    assert await tab.evaluate("window.opener") is None
    await tab.get_by_role("button").click()
    await expect(tab.get_by_text("Signed in")).to_be_visible()
    await tab.close()


async def test_admin_signs_in_to_a_server_and_out(console: str, page: Page) -> None:
    await go(page, f"{console}/servers")
    card = page.locator(".server", has_text="vault")
    await expect(card).to_contain_text("needs a sign-in")
    await page.get_by_role("button", name="Sign in vault").click()
    await take_pictures(page, "server-sign-in")
    await consent(page, "Open the sign-in")
    await page.get_by_role("dialog").get_by_role("button", name="Close").click()
    await expect(card).to_contain_text("1 tool")
    await page.get_by_role("button", name="Sign out vault").click()
    await expect(page.get_by_role("button", name="Sign out vault")).to_have_count(0)
    await go(page, console)
    await send(page, "call vault_whose_vault {}")
    await expect(page.locator(".question")).to_be_visible()
    await expect(page.get_by_role("link", name="Open the page")).to_be_visible()


async def test_turn_that_needs_a_sign_in_has_its_link_and_goes_on_afterwards(console: str, page: Page) -> None:
    await go(page, console)
    await send(page, "call vault_sign_in {}")
    await expect(page.locator(".question")).to_be_visible()
    await consent(page, "Open the page")
    await wait_for_end(page)
    await expect(page.locator(".question")).to_have_count(0)
    await expect(page.locator(".tool-call")).to_contain_text("ok")
