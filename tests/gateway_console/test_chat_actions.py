"""Actions of a person in the chat, in Chromium."""

import base64
import json
from collections.abc import AsyncGenerator

import pytest
from playwright.async_api import Page, expect

from tests.eventually import eventually
from tests.gateway_console.browsing import choose, go, needs_axe, send, take_pictures, wait_for_end
from tests.gateway_console.running_console import needs_chromium
from tests.gateway_console.showcase_server import ShowcaseServer, make_picture, serve_showcase
from tests.stack import Gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium, needs_axe]


@pytest.fixture(scope="module")
async def showcase(gateway: Gateway) -> AsyncGenerator[ShowcaseServer]:
    """The server, connected to the gateway."""
    async with serve_showcase() as server:
        added = await gateway.post("/api/v1/mcp/servers", {"name": "showcase", "url": server.url})
        assert added.status == 201, added.body

        async def is_up() -> bool:
            names = [tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]]
            return "showcase_book_seat" in names

        await eventually(is_up, timeout_seconds=60)
        yield server


async def test_reload_in_mid_stream_goes_on_where_it_was_and_stop_ends_it(
    gateway: Gateway, console: str, page: Page
) -> None:
    await go(page, console)
    gateway.simulator.pause_streams()
    try:
        await send(page, "Tell me about bees.")
        await page.wait_for_url("**/chat/*")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await page.reload()
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await expect(page.locator(".prompt")).to_have_count(1)
        gateway.simulator.resume_streams()
        await wait_for_end(page)
        await expect(page.locator(".markdown").last).to_contain_text("bees")
        gateway.simulator.pause_streams()
        await send(page, "Tell me about wasps.")
        await page.get_by_role("button", name="Stop").click()
        await wait_for_end(page, turns=2)
    finally:
        gateway.simulator.resume_streams()
    conversation = page.url.rpartition("/")[2]
    detail = (await gateway.get(f"/api/v1/conversations/{conversation}")).body
    assert [turn["status"] for turn in detail["turns"]] == ["completed", "cancelled"]


async def test_turn_is_asked_again_edited_and_rated(gateway: Gateway, console: str, page: Page) -> None:
    await go(page, console)
    await send(page, "What is 2*3?")
    await wait_for_end(page)
    await send(page, "What is 3*4?")
    await wait_for_end(page, turns=2)
    await page.get_by_role("button", name="Retry").last.click()
    await wait_for_end(page, turns=3)
    await page.get_by_role("button", name="Edit and branch").last.click()
    await expect(page.get_by_label("Message")).to_have_value("What is 3*4?")
    await send(page, "What is 5*6?")
    await wait_for_end(page, turns=4)
    await page.get_by_role("button", name="Good answer").last.click()
    await expect(page.get_by_text("Thank you.")).to_be_visible()
    await page.get_by_label("What was good? (optional)").fill("It is right.")
    await page.get_by_role("dialog").get_by_role("button", name="Send").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    conversation = page.url.rpartition("/")[2]
    turns = (await gateway.get(f"/api/v1/conversations/{conversation}")).body["turns"]
    first = turns[0]["id"]
    assert [turn["parent_id"] for turn in turns] == [None, first, first, first]
    assert [turn["prompt"] for turn in turns[2:]] == ["What is 3*4?", "What is 5*6?"]
    await page.reload()
    await wait_for_end(page, turns=2)  # the branch alone
    await expect(page.get_by_text("Reasoning").first).to_be_visible()
    assert (await gateway.get("/api/v1/budget")).body["days"][0]["up"] == 1
    async with gateway.session.get(f"{gateway.base_url}/api/v1/admin/user-data?user=local") as response:
        assert '"comment":"It is right."' in (await response.text()).replace(": ", ":")


async def test_image_is_sent_and_shown_again(gateway: Gateway, console: str, page: Page) -> None:
    await go(page, console)
    await page.get_by_text("Options").click()
    picture = base64.b64decode(make_picture())
    async with page.expect_file_chooser() as chosen:
        await page.get_by_role("button", name="Add images").click()
    chooser = await chosen.value
    await chooser.set_files([{"name": "blue.png", "mimeType": "image/png", "buffer": picture}])
    await expect(page.get_by_role("img", name="Image to send")).to_be_visible()
    await choose(page, "Model", "qwen/qwen3.8-27b")
    await send(page, "What is in it?")
    await wait_for_end(page)
    await page.reload()
    await expect(page.get_by_role("img", name="Image of the prompt")).to_be_visible()
    sent = json.dumps(list(gateway.simulator.requests)[-1]["messages"])
    assert make_picture() in sent


async def test_question_of_a_tool_is_a_form_made_from_its_schema(
    console: str, page: Page, showcase: ShowcaseServer
) -> None:
    await go(page, console)
    await send(page, "call showcase_book_seat {}")
    question = page.locator(".question")
    await expect(question).to_contain_text("Where do you sit? <img")
    await question.get_by_role("button", name="Answer").click()
    await expect(question.get_by_role("alert")).to_contain_text("enter a value")
    await choose(page, "Row *", "front")
    await page.get_by_label("Count *").fill("2")
    await page.get_by_role("checkbox", name="Window").click()
    await take_pictures(page, "question")
    await question.get_by_role("button", name="Answer").click()
    await expect(page.locator(".tool-call")).to_contain_text("accept row='front' count=2")
    await wait_for_end(page)
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0


async def test_call_is_approved_with_other_arguments(
    gateway: Gateway, console: str, page: Page, showcase: ShowcaseServer
) -> None:
    await go(page, console)
    await page.get_by_text("Options").click()
    await choose(page, "Approval", "always")
    given = {"to": {"city": "Oslo"}, "weight": 2.5, "extra": {"a": 1}}
    await send(page, f"call showcase_send_parcel {json.dumps(given)}")
    question = page.locator(".question")
    await question.get_by_text("Change the arguments").click()
    await expect(question.get_by_label("City *")).to_have_value("Oslo")
    await question.get_by_label("City *").fill("Rome")
    await take_pictures(page, "approval")
    await question.get_by_label("City *").fill("")
    await question.get_by_role("button", name="Approve").click()
    await expect(question.get_by_role("alert")).to_contain_text("city: enter a value")
    await question.get_by_label("City *").fill("Rome")
    await question.get_by_role("button", name="Approve").click()
    card = page.locator(".tool-call")
    await expect(card).to_contain_text("Rome/None 2.5 small None False {'a': 1}")
    await wait_for_end(page)
    await expect(page.get_by_text("Accepted by local, with other arguments")).to_be_visible()
    conversation = page.url.rpartition("/")[2]
    [turn] = (await gateway.get(f"/api/v1/conversations/{conversation}")).body["turns"]
    stored = (await gateway.get(f"/api/v1/turns/{turn['id']}")).body
    assert stored["tool_calls"][0]["arguments"]["to"]["city"] == "Rome"
    await page.reload()
    await card.get_by_text("Arguments").click()
    await expect(card.locator(".plain").first).to_contain_text('"city": "Rome"')
    await page.get_by_role("link", name="Timeline").click()
    await expect(page.locator(".timeline-wait")).to_contain_text("accept by local, with other arguments")


async def test_call_that_is_approved_unchanged_sends_no_arguments(
    gateway: Gateway, console: str, page: Page, showcase: ShowcaseServer
) -> None:
    await go(page, console)
    await page.get_by_text("Options").click()
    await choose(page, "Approval", "always")
    await send(page, 'call showcase_send_parcel {"to": {"city": "Oslo", "zip": null}, "weight": 1}')
    question = page.locator(".question")
    await question.get_by_text("Change the arguments").click()
    await expect(question.get_by_label("City *")).to_have_value("Oslo")
    await question.get_by_role("button", name="Approve").click()
    await wait_for_end(page)
    conversation = page.url.rpartition("/")[2]
    [turn] = (await gateway.get(f"/api/v1/conversations/{conversation}")).body["turns"]
    [asked] = (await gateway.get(f"/api/v1/turns/{turn['id']}")).body["inputs"]
    assert (asked["answer"]["action"], asked["answer"]["content"]) == ("accept", None)


async def test_new_chat_has_examples_for_its_tools(console: str, page: Page) -> None:
    await go(page, console)
    await expect(page.get_by_text("tools of the connected MCP servers")).to_be_visible()
    await expect(page.get_by_role("button", name="What is 23*19?")).to_be_visible()
    await take_pictures(page, "new-chat")
    await page.get_by_role("button", name="What is 23*19?").click()
    await wait_for_end(page)
    await expect(page.locator(".tool-call")).to_contain_text("23*19 = 437")
    await expect(page.get_by_text("What shall the model do?")).to_have_count(0)


async def test_window_follows_a_growing_answer_until_a_person_scrolls_up(console: str, page: Page) -> None:
    await go(page, console)
    await send(page, "What is 2*3?")
    await wait_for_end(page)
    grow = "document.querySelector('main').append(Object.assign(document.createElement('p'), {style: 'height: 900px'}))"
    at_end = "innerHeight + scrollY >= document.documentElement.scrollHeight - 5"
    wait_for_frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    for _ in range(2):
        await page.evaluate(grow)
        await page.wait_for_function(at_end)
    await page.evaluate(wait_for_frames)
    await page.evaluate(f"scrollBy(0, -30); {wait_for_frames}")
    await page.evaluate(f"scrollBy(0, 30); {grow}")  # the event of a scroll comes when the answer has grown again
    await page.wait_for_function(at_end)
    await page.evaluate("scrollTo(0, 100)")
    await page.wait_for_function("scrollY === 100")
    await page.evaluate(f"{grow}; {wait_for_frames}")
    assert await page.evaluate("scrollY") == 100


async def test_page_of_a_tool_gets_its_result_and_may_do_nothing_else(
    console: str, page: Page, showcase: ShowcaseServer
) -> None:
    await go(page, console)
    await send(page, "call showcase_open_board {}")
    await page.get_by_role("button", name="Open the app").click()
    await expect(page.frame_locator("iframe").locator("#said")).to_have_text("score 42, refused")
    assert await page.locator("iframe").get_attribute("sandbox") == "allow-scripts"
    assert await page.frames[-1].title() == "no access"
    await take_pictures(page, "app")


async def test_chat_has_pictures_of_tables_and_charts(console: str, page: Page, showcase: ShowcaseServer) -> None:
    await go(page, console)
    await send(page, 'call showcase_report_sales {"months": 4}')
    await wait_for_end(page)
    await expect(page.get_by_role("cell", name="M4")).to_be_visible()
    await expect(page.locator(".chart canvas")).to_be_visible()
    await take_pictures(page, "chat")
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0
