"""A console of a real gateway, and pages of Chromium."""

from collections.abc import AsyncGenerator

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.gateway_console.running_console import CHROMIUM, PICTURES, run_console
from tests.stack import Gateway, ServeSharedGateway

SECONDS = 60.0


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await serve_shared_gateway()


@pytest.fixture(scope="module")
async def console(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    async with run_console(gateway.base_url, tmp_path_factory.mktemp("console")) as url:
        yield url


@pytest.fixture(scope="module")
async def chromium() -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def page(chromium: Browser) -> AsyncGenerator[Page]:
    """A page of a new browser.

    An error of its scripts fails the test.
    """
    PICTURES.mkdir(parents=True, exist_ok=True)
    expect.set_options(SECONDS * 1e3)
    context = await chromium.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    context.set_default_timeout(SECONDS * 1e3)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    await context.close()
    assert errors == []
