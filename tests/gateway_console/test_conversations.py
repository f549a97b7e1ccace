"""Conversations and turns in Chromium, as a person uses them."""

import json
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gateway_console.components.controls import mark_snippet
from gateway_console.components.timeline import TurnTimeline, build_time_bars
from tests.gateway_console.browsing import choose, go, needs_axe, take_pictures
from tests.gateway_console.running_console import needs_chromium
from tests.stack import Gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium, needs_axe]
ATTACK = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


async def start_conversation(gateway: Gateway, prompt: str) -> tuple[str, str]:
    """Return the ids of a conversation and its first turn."""
    body = (await gateway.chat(prompt, conversation_id="new")).body
    return body["conversation_id"], body["turn_id"]


async def test_conversation_is_found_renamed_exported_and_deleted(gateway: Gateway, console: str, page: Page) -> None:
    conversation, turn = await start_conversation(gateway, "What is 23*19? Say it to the zebra.")
    await start_conversation(gateway, "What is 2*3?")
    await go(page, f"{console}/conversations")
    card = page.locator(".card", has=page.get_by_role("link", name="zebra"))
    await expect(card).to_have_count(1)
    await card.get_by_role("button", name="Rename").click()
    await page.get_by_label("Title").fill(f"Zebras {ATTACK}")
    await page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    await expect(page.get_by_role("link", name="Zebras <img")).to_be_visible()
    await take_pictures(page, "conversations")
    await page.get_by_label("Search prompts and answers").fill("zebra")
    await page.get_by_role("button", name="Search", exact=True).click()
    await expect(page.locator(".snippet mark")).to_have_text(["zebra"])
    await take_pictures(page, "search")
    assert await page.get_by_role("link", name="Timeline").get_attribute("href") == f"/turns/{turn}"
    await page.get_by_label("Search prompts and answers").fill("")
    await page.get_by_role("button", name="Search", exact=True).click()
    card = page.locator(".card", has=page.get_by_role("link", name="Zebras"))
    async with page.expect_download() as download:
        await card.get_by_role("button", name="Export").click()
    exported = json.loads(Path(await (await download.value).path()).read_text())
    assert (exported["id"], [each["id"] for each in exported["turns"]]) == (conversation, [turn])
    await card.get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(card).to_have_count(0)
    assert (await gateway.get(f"/api/v1/conversations/{conversation}")).status == 404
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0


async def test_turn_is_a_timeline_that_is_forked_replayed_and_compared(
    gateway: Gateway, console: str, page: Page
) -> None:
    conversation, turn = await start_conversation(gateway, f"What is 23*19? {ATTACK}")
    await go(page, f"{console}/turns/{turn}")
    await expect(page.locator(".timeline-end")).to_contain_text("Completed")
    await expect(page.locator(".timeline-call")).to_contain_text("calculator")
    await expect(page.locator(".timeline-step")).to_have_count(2)
    await expect(page.locator(".timeline-step").first).to_contain_text("tokens")
    await take_pictures(page, "turn")
    await page.get_by_role("button", name="Replay").click()
    await choose(page, "Other model", "openai/gpt-oss-20b")
    await page.get_by_role("dialog").get_by_role("button", name="Replay").click()
    await page.wait_for_url(lambda url: "/turns/" in url and turn not in url)
    await expect(page.locator(".timeline-end")).to_contain_text("Completed")
    await expect(page.locator(".timeline-call")).to_contain_text("recorded")
    await page.get_by_role("link", name="Compare with it").click()
    await expect(page.get_by_text("openai/gpt-oss-20b")).to_be_visible()
    await take_pictures(page, "comparison")
    await page.get_by_role("link", name="First turn").click()
    await expect(page.locator(".timeline-end")).to_be_visible()
    await page.get_by_role("button", name="Fork").click()
    await choose(page, "Steps to take over", "1")
    await page.get_by_label("Message after them").fill("And what is 5*9?")
    await page.get_by_role("dialog").get_by_role("button", name="Fork").click()
    await page.wait_for_url(lambda url: "/turns/" in url and turn not in url)
    await expect(page.locator(".timeline-end")).to_contain_text("Completed")
    await page.get_by_role("link", name="Open in the chat").click()
    await expect(page.locator(".tool-call").first).to_contain_text("23*19 = 437")
    detail = (await gateway.get(f"/api/v1/conversations/{conversation}")).body
    assert [each["origin_id"] for each in detail["turns"]] == [None, turn, turn]
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0


async def test_turn_that_does_not_exist_is_told(console: str, page: Page) -> None:
    await go(page, f"{console}/turns/01a21cdc-241d-77e4-8d50-5768b3c2944b")
    await expect(page.get_by_role("alert")).to_be_visible()


def test_only_marks_of_a_snippet_are_elements() -> None:
    assert mark_snippet("<b>a</b> <mark>x</mark> <mark onclick=y>") == (
        "&lt;b&gt;a&lt;/b&gt; <mark>x</mark> &lt;mark onclick=y&gt;"
    )


def test_retries_and_waits_stand_in_the_timeline() -> None:
    timeline = TurnTimeline()
    for event in (
        {"type": "text.delta", "step": 1, "text": "wrong"},
        {"type": "model.retry", "step": 1, "reason": "cut off", "attempt": 2, "discard": True},
        {"type": "text.delta", "step": 1, "text": "right"},
        {"type": "input.required", "input_id": "i", "kind": "approval", "message": "May it run?"},
        {"type": "input.resolved", "input_id": "i", "action": "accept", "by": "ada"},
        {"type": "turn.failed", "error": {"code": "model_unavailable", "message": "It is away."}},
    ):
        timeline.apply(event)
    shown = [(entry.kind, entry.state, entry.text) for entry in timeline.entries]
    assert shown == [
        ("step", "", "right"),
        ("retry", "", "cut off"),
        ("wait", "accept by ada", "May it run?"),
        ("end", "model_unavailable", "It is away."),
    ]


def test_steps_last_from_the_calls_before_to_the_next_ones() -> None:
    turn = {
        "created_at": "2026-01-01T00:00:00Z",
        "completed_at": "2026-01-01T00:00:10Z",
        "steps": 2,
        "tool_calls": [{"step": 1, "tool": "t", "started_at": "2026-01-01T00:00:02Z", "duration_ms": 3000.0}],
    }
    bars = [(bar.title, round(bar.start, 3), round(bar.length, 3)) for bar in build_time_bars(turn)]
    assert bars == [("Step 1", 0.0, 0.2), ("t", 0.2, 0.3), ("Step 2", 0.5, 0.5)]
