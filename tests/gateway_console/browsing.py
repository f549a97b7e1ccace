"""Steps of the tests of the console's pages in Chromium."""

from pathlib import Path
from typing import Any

from playwright.async_api import Error, Page, expect

from tests.gateway_console.running_console import PICTURES
from tests.requirements import require

AXE = Path("tests/node/node_modules/axe-core/axe.min.js")
_RULES = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
    .filter(found => ['serious', 'critical'].includes(found.impact))
    .map(found => [found.id, ...found.nodes.slice(0, 5).map(node => node.html.slice(0, 300))])"""
# Elements of cards that stand out of them, unless a part of the card scrolls.
_OVERFLOW = """() => [...document.querySelectorAll('.card')].flatMap(card =>
    [...card.querySelectorAll('*')].filter(each => {
        for (let up = each; up !== card.parentElement; up = up.parentElement)
            if (getComputedStyle(up).overflowX !== 'visible') return false;
        return each.getBoundingClientRect().right > card.getBoundingClientRect().right + 1;
    })).slice(0, 5).map(each => each.outerHTML.slice(0, 300))"""
NARROW = 360
needs_axe = require(AXE.exists(), "axe-core (`make node`)")


async def send(page: Page, prompt: str) -> None:
    await page.get_by_label("Message").fill(prompt)
    await page.get_by_role("button", name="Send").click()


async def wait_for_end(page: Page, turns: int = 1) -> None:
    await expect(page.get_by_role("button", name="Retry")).to_have_count(turns)


async def go(page: Page, url: str) -> None:
    """Open a page, and wait until its script is connected."""
    await page.goto(url)
    await wait_until_connected(page)


async def wait_until_connected(page: Page) -> None:
    """Wait until events of the page reach the console at once.

    NiceGUI holds events of before back, and may send them in another order: a click before the text of its field.
    """
    await page.wait_for_function("window.did_handshake")


async def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of a select."""
    await page.get_by_label(label, exact=True).click()
    await page.get_by_role("option", name=option, exact=True).click()


async def take_pictures(page: Page, name: str) -> None:
    """Save pictures in light and dark, wide and narrow.

    Fail if something is wider than a narrow window, or if axe finds a serious fault.
    """
    await check_accessibility(page)
    await page.screenshot(path=PICTURES / f"{name}.png")
    await page.emulate_media(color_scheme="dark")
    await expect(page.locator("body.body--dark")).to_have_count(1)
    await check_accessibility(page)
    await page.screenshot(path=PICTURES / f"{name}-dark.png")
    await page.set_viewport_size({"width": NARROW, "height": 740})
    await wait_for_narrow_layout(page)
    await wait_for_rest(page)
    await page.screenshot(path=PICTURES / f"{name}-dark-narrow.png")
    await page.emulate_media(color_scheme="light")
    await expect(page.locator("body.body--dark")).to_have_count(0)
    await wait_for_rest(page)
    await page.screenshot(path=PICTURES / f"{name}-narrow.png")
    await page.set_viewport_size({"width": 1200, "height": 800})


async def wait_for_narrow_layout(page: Page) -> None:
    """Wait until the page fits into the window.

    The menu slides out. Behind a dialog, Quasar's layout does not notice another width.
    """
    await page.wait_for_function(
        "document.querySelector('.q-drawer').getBoundingClientRect().right <= 0 ||"
        " document.body.classList.contains('q-body--prevent-scroll')"
    )
    await page.wait_for_function(f"document.documentElement.scrollWidth <= {NARROW}")
    try:
        await page.wait_for_function(f"!({_OVERFLOW})().length", timeout=10_000)
    except Error:
        raise AssertionError(await page.evaluate(_OVERFLOW)) from None


async def wait_for_rest(page: Page) -> None:
    """Wait for the end of all transitions.

    Those that repeat without an end do not count.
    """
    await page.wait_for_function(
        "document.getAnimations().every(each => each.playState !== 'running' ||"
        " each.effect.getComputedTiming().endTime === Infinity)"
    )


async def check_accessibility(page: Page) -> None:
    """Fail if axe-core finds a serious fault."""
    await wait_for_rest(page)
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE.read_text())
    found: list[Any] = await page.evaluate(_RULES)
    assert not found, found
