"""Pictures of docs/console.md: `make console-pictures`."""

import pytest
from playwright.async_api import Page, expect

from tests.gateway_console.browsing import go, send, wait_for_end, wait_for_rest, wait_until_connected
from tests.gateway_console.running_console import PICTURES, needs_chromium
from tests.stack import Gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium]


async def take_picture(page: Page, name: str) -> None:
    await wait_for_rest(page)
    await page.screenshot(path=PICTURES / f"console-{name}.png")


async def test_pictures_of_the_documentation_are_drawn(gateway: Gateway, console: str, page: Page) -> None:
    await page.set_viewport_size({"width": 1000, "height": 640})
    await go(page, console)
    await send(page, "What is 23*19?")
    await wait_for_end(page)
    await expect(page.locator(".tool-call")).to_contain_text("437")
    await take_picture(page, "chat")
    conversation = page.url.rpartition("/")[2]
    [turn] = (await gateway.get(f"/api/v1/conversations/{conversation}")).body["turns"]
    await page.emulate_media(color_scheme="dark")
    await go(page, f"{console}/turns/{turn['id']}")
    await expect(page.locator(".timeline-end")).to_contain_text("Completed")
    await take_picture(page, "turn")
    await page.emulate_media(color_scheme="light")
    await go(page, f"{console}/tools")
    await page.get_by_role("link", name="calculator").click()
    await page.wait_for_url("**/tools/*")
    await wait_until_connected(page)
    await page.get_by_label("Expression *").fill("2**10")
    await page.get_by_role("button", name="Call the tool").click()
    await expect(page.get_by_role("region", name="Result")).to_contain_text("1024")
    await take_picture(page, "tool")
    await go(page, f"{console}/usage")
    await expect(page.get_by_role("img", name="Cost in USD by day and model")).to_be_visible()
    await page.wait_for_function("document.querySelectorAll('.chart canvas').length >= 3")
    await take_picture(page, "usage")
    assert {path.name for path in PICTURES.glob("console-*.png")} >= {
        f"console-{name}.png" for name in ("chat", "turn", "tool", "usage")
    }
