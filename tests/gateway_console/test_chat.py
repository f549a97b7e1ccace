"""The chat in Chromium, as a person uses it."""

import pytest
from playwright.async_api import Page, expect

from tests.gateway_console.browsing import go, send, wait_for_end, wait_for_narrow_layout
from tests.gateway_console.running_console import PICTURES, needs_chromium
from tests.stack import Gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), needs_chromium]


async def test_tool_runs_in_a_card_and_a_reload_shows_the_conversation(console: str, page: Page) -> None:
    await go(page, console)
    await send(page, "What is 23*19?")
    await wait_for_end(page)
    card = page.locator(".tool-call")
    await expect(card).to_contain_text("23*19 = 437")
    await expect(page.locator(".markdown").last).to_contain_text("437")
    await page.screenshot(path=PICTURES / "chat-light.png")
    await page.reload()
    await expect(page.locator(".tool-call")).to_contain_text("23*19 = 437")
    await wait_for_end(page)
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size({"width": 360, "height": 740})
    await expect(page.locator("body.body--dark")).to_have_count(1)
    await wait_for_narrow_layout(page)
    await page.screenshot(path=PICTURES / "chat-dark-narrow.png")


async def test_approval_is_given_in_a_form_also_after_a_reload(console: str, page: Page) -> None:
    await go(page, console)
    await expect(page.get_by_role("button", name="What is 23*19?")).to_be_visible()  # a layout that moves closes menus
    await page.get_by_text("Options").click()
    await page.get_by_label("Approval").click()
    await page.get_by_role("option", name="always").click()
    await send(page, "What is 5*9?")
    await expect(page.get_by_role("button", name="Approve")).to_be_visible()
    await page.screenshot(path=PICTURES / "approval.png")
    await page.wait_for_url("**/chat/*")
    await page.reload()
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".tool-call")).to_contain_text("5*9 = 45")
    await wait_for_end(page)
    await expect(page.get_by_role("button", name="Approve")).to_have_count(0)


async def test_markup_in_prompt_arguments_and_result_stays_text(console: str, page: Page) -> None:
    attack = "Add a task to <img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    await go(page, console)
    await send(page, attack)
    await wait_for_end(page)
    await page.reload()
    await wait_for_end(page)
    assert await page.locator("main img[src=x], main script").count() == 0
    assert "owned" not in await page.title()
    await expect(page.locator(".prompt")).to_contain_text("<script>")


async def test_summary_of_earlier_turns_is_shown(gateway: Gateway, console: str, page: Page) -> None:
    words = "and so on "  # three tokens; the model has 131,072, a quarter of them for the answer
    first = await gateway.chat(f"My name is Ada. {words * 8_000}", conversation_id="new")
    conversation = first.body["conversation_id"]
    await gateway.chat(words * 16_000, conversation_id=conversation)
    await go(page, f"{console}/chat/{conversation}")
    await wait_for_end(page, 2)
    await send(page, f"What is my name? {words * 5_000}")
    await wait_for_end(page, 3)
    await expect(page.get_by_text("turns of this conversation do not fit into the model's context")).to_be_visible()
    await page.get_by_text("Summary of ", exact=False).click()
    await expect(page.get_by_text("My name is Ada.", exact=False).last).to_be_visible()
    await page.screenshot(path=PICTURES / "summary.png")
    await page.get_by_role("link", name="Timeline").last.click()
    await expect(page.get_by_text("Earlier turns summarized")).to_be_visible()


async def test_program_is_shown_as_code_with_its_calls_inside(gateway: Gateway, console: str, page: Page) -> None:
    await gateway.chat("Add a task: Buy 3 eggs")
    prompt = "Add up the numbers in the titles of my pending tasks"
    reply = await gateway.chat(prompt, conversation_id="new", code="only")
    await go(page, f"{console}/chat/{reply.body['conversation_id']}")
    await wait_for_end(page)
    program = page.locator(".tool-call", has_text="run_python").first
    await expect(program.locator("pre").first).to_contain_text("await list_tasks(")
    await expect(program.locator(".tool-call")).to_have_count(2)
    await page.screenshot(path=PICTURES / "program.png")
