"""Tools that an admin defines in Chromium."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway_console.browsing import go, needs_axe, send, take_pictures, wait_for_end
from tests.gateway_console.running_console import needs_chromium, run_console
from tests.stack import Gateway, serve_gateway, serve_tools
from tests.tools_server.definitions import Api, serve_api

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium, needs_axe]
SECRET = "sk-of-the-warehouse"


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    """A gateway whose tool server may reach this machine."""
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": "a-key-of-the-console-tests"}
    async with serve_tools(database_url, **options) as url, serve_gateway(database_url, simulator, url) as running:
        yield running


@pytest.fixture
async def console(gateway: Gateway, tmp_path: Path) -> AsyncGenerator[str]:
    async with run_console(gateway.base_url, tmp_path) as url:
        yield url


async def wait_until_listed(gateway: Gateway, name: str) -> None:
    async def is_listed() -> bool:
        return name in {tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]}

    await eventually(is_listed, timeout_seconds=60)


async def test_document_is_imported_and_its_tool_published_and_used_in_the_chat(
    gateway: Gateway, console: str, page: Page, api: Api
) -> None:
    api.answer = {"stock": 7, "note": "<script>document.title='owned'</script>"}
    operation = {
        "operationId": "count_stock",
        "summary": "Count the stock <b>now</b>",
        "parameters": [{"name": "article", "in": "path", "required": True, "schema": {"type": "string"}}],
    }
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Warehouse <img src=x>", "version": "1"},
        "servers": [{"url": api.url}],
        "paths": {"/stock/{article}": {"get": operation}},
    }
    await go(page, f"{console}/definitions")
    await page.get_by_role("button", name="Import OpenAPI").click()
    await page.get_by_label("Document (JSON or YAML)").fill(json.dumps(document))
    await page.get_by_role("button", name="Show what would change").click()
    report = page.get_by_role("region", name="Import")
    await expect(report).to_contain_text("count_stock")
    await take_pictures(page, "import")
    await report.get_by_role("button", name="Import").click()
    await expect(report).to_contain_text("Imported")
    card = page.locator(".definition", has_text="count_stock")
    await expect(card).to_contain_text("draft")
    await page.get_by_role("button", name="Test count_stock").click()
    await page.get_by_label("article *").fill("bolt")
    await page.get_by_role("button", name="Send the request").click()
    await expect(page.get_by_role("region", name="Result of the test")).to_contain_text('"stock": 7')
    await take_pictures(page, "definitions")
    await page.get_by_role("button", name="Publish count_stock").click()
    await expect(card).to_contain_text("published")
    await wait_until_listed(gateway, "count_stock")
    await go(page, console)
    await send(page, 'call count_stock {"article": "nut"}')
    await wait_for_end(page)
    await expect(page.locator(".tool-call")).to_contain_text('"stock": 7')
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0


async def test_tool_is_made_edited_and_deleted(gateway: Gateway, console: str, page: Page, api: Api) -> None:
    await go(page, f"{console}/definitions")
    await page.get_by_role("button", name="New tool").click()
    await page.get_by_label("Name *").fill("ping")
    await page.get_by_label("URL *").fill(f"{api.url}/ping")
    await page.get_by_role("button", name="Save the draft").click()
    await expect(page.get_by_role("alert")).to_contain_text("enter a value")
    await page.get_by_label("Description *").fill("Ping.")
    await page.get_by_label("Headers (JSON)").fill('{"X-Token": "{secret.token}"}')
    await page.get_by_label("Secrets to set (JSON)").fill(json.dumps({"token": SECRET}))
    await page.get_by_role("button", name="Save the draft").click()
    card = page.locator(".definition", has_text="ping")
    await expect(card).to_contain_text("token")
    await page.get_by_role("button", name="Edit ping").click()
    await page.get_by_label("Description *").fill("Ping the warehouse.")
    await page.get_by_role("button", name="Save the draft").click()
    await expect(card).to_contain_text("Ping the warehouse.")
    assert SECRET not in await page.content()
    stored = (await gateway.get("/api/v1/tools/definitions/ping")).body
    assert (stored["revision"], stored["definition"]["headers"]) == (2, {"X-Token": "{secret.token}"})
    await page.get_by_role("button", name="Delete ping").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(card).to_have_count(0)
