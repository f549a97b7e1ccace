"""Tests of front ends' SDKs, in Node and in Chromium."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import Page, async_playwright, expect
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from gateway.simulator import Fault, Simulator
from tests.e2e.node import NODE_22, build_page, require_node, run_program, run_script
from tests.eventually import eventually
from tests.gateway_console.running_console import CHROMIUM, needs_chromium
from tests.stack import Gateway, serve_asgi, serve_gateway

pytestmark = [pytest.mark.node, pytest.mark.faults]

expect.set_options(timeout=30_000)


@dataclass
class ChatPage:
    """A page of examples/use_chat.tsx in Chromium, at an origin of its own."""

    page: Page
    gateway: Gateway
    origin: str
    errors: list[str]

    async def open(self, chat: str, approval: str = "never") -> None:
        await self.page.goto(f"{self.origin}/page.html?gateway={self.gateway.base_url}&chat={chat}&approval={approval}")

    async def send(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()


@pytest.fixture
async def chat_page(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> AsyncGenerator[ChatPage]:
    await build_page("use_chat.tsx", tmp_path)
    files = Starlette()
    files.mount("/", StaticFiles(directory=tmp_path))
    async with (
        serve_asgi(files) as origin,
        serve_gateway(database_url, simulator, tools_url, cors_origins=(origin,)) as gateway,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield ChatPage(page, gateway, origin, errors)
        await browser.close()
        assert errors == []


@require_node("@ai-sdk/react")
async def test_chats_of_the_ai_sdk_need_only_the_url(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.2, match="Go on"))
    result = await run_script("ui_chat.mjs", gateway.base_url, node=NODE_22)
    plain = result["plain"]
    assert plain["types"] == ["step-start", "reasoning", "dynamic-tool", "step-start", "reasoning", "text"]
    assert "437" in plain["text"]
    assert plain["metadata"]["finish_reason"] == "stop"
    assert (plain["roles"], plain["status"]) == (["user", "assistant", "user", "assistant"], "ready")
    assert (result["approval"]["asked"], result["approval"]["states"]) == ("approval-requested", ["output-available"])
    assert result["approval"]["messages"] == 2
    assert "milk" in result["approval"]["text"]
    assert (result["own"]["cities"], result["own"]["messages"]) == (["Oslo"], 2)
    assert result["own"]["types"].count("tool-get_weather") == 1
    assert "It snows in Oslo." in result["own"]["text"]
    assert (result["stopped"]["status"], result["stopped"]["sameId"]) == ("ready", True)
    assert result["idle"] == "ready"
    assert result["refused"]["status"] == "error"
    assert "no-such-model" in result["refused"]["message"]
    assert result["six"]["types"] == plain["types"]
    assert "437" in result["six"]["text"]

    async def is_cancelled() -> bool:
        turn = await gateway.get(f"/api/v1/turns/{result['stopped']['turn']}")
        return turn.body["status"] == "cancelled"

    await eventually(is_cancelled)


@needs_chromium
@require_node("@ai-sdk/react")
async def test_page_with_use_chat_answers_stops_and_resumes(chat_page: ChatPage, db: asyncpg.Connection) -> None:
    page, gateway = chat_page.page, chat_page.gateway
    await chat_page.open("sums")
    await chat_page.send("What is 23*19?")
    await expect(page.locator(".assistant .text")).to_contain_text("437")
    await expect(page.locator(".tool")).to_contain_text('calculator {"expression":"23*19"}: output-available')
    await expect(page.locator(".reasoning").first).not_to_be_empty()
    await expect(page.locator("output")).to_have_text("ready")
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.2, match="Go on"))
    await chat_page.send("Go on.")
    await expect(page.locator(".assistant .text").nth(1)).not_to_be_empty()
    await page.reload()  # the page keeps no messages, so it shows the answer alone
    await expect(page.locator(".assistant .text")).not_to_be_empty()
    await expect(page.locator("output")).to_have_text("streaming")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("output")).to_have_text("ready")

    async def is_cancelled() -> bool:
        return [row[0] for row in await db.fetch("SELECT status FROM turns ORDER BY id")] == ["completed", "cancelled"]

    await eventually(is_cancelled)


@needs_chromium
@require_node("@ai-sdk/react")
async def test_page_with_use_chat_asks_for_approval(chat_page: ChatPage, db: asyncpg.Connection) -> None:
    page = chat_page.page
    await chat_page.open("tasks", approval="always")
    await chat_page.send("Add a task to buy milk")
    await page.get_by_role("button", name="Allow").click()
    await expect(page.locator(".tool")).to_contain_text("output-available")
    await expect(page.locator(".assistant .text")).to_contain_text("milk")
    await expect(page.locator("output")).to_have_text("ready")
    assert await db.fetchval("SELECT title FROM tools.tasks") == "buy milk"
    await chat_page.send("Add a task to buy bread")
    await page.get_by_role("button", name="Decline").click()
    await expect(page.locator(".tool").last).to_contain_text("output-denied")
    await expect(page.locator("output")).to_have_text("ready")
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1


@require_node("@ag-ui/client")
async def test_runs_of_ag_ui_need_only_the_url(gateway: Gateway, db: asyncpg.Connection) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.2, match="Go on"))
    result = await run_script("ag_ui.mjs", gateway.base_url, node=NODE_22)
    plain = result["plain"]
    assert plain["types"][0] == "RUN_STARTED"
    assert plain["types"][-1] == "RUN_FINISHED"
    assert {"STEP_STARTED", "REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS", "TOOL_CALL_RESULT"} <= set(plain["types"])
    assert plain["roles"] == ["user", "reasoning", "assistant", "tool", "reasoning", "assistant"]
    assert "437" in plain["text"]
    assert plain["end"]["usage"][0]["totalTokens"] > 0
    approval = result["approval"]
    assert approval["outcome"]["type"] == "interrupt"
    assert approval["outcome"]["interrupts"][0]["reason"] == "approval"
    assert "TOOL_CALL_RESULT" in approval["types"]
    assert "TOOL_CALL_START" not in approval["types"]
    assert "milk" in approval["text"]
    assert approval["roles"].count("tool") == 1
    assert "did not allow" in result["declined"]["last"]
    assert await db.fetch("SELECT title FROM tools.tasks") == [("buy milk",)]
    own = result["own"]
    assert own["call"]["name"] == "get_weather"
    assert len(own["end"]["pendingToolCallIds"]) == 1
    assert "It snows in Oslo." in own["text"]
    assert own["roles"].count("tool") == 1
    assert "no-such-model" in result["refused"]

    async def is_cancelled() -> bool:
        return (await gateway.get(f"/api/v1/turns/{result['aborted']}")).body["status"] == "cancelled"

    await eventually(is_cancelled)


@require_node("@ag-ui/client")
async def test_program_with_ag_ui_answers_an_interrupt(
    gateway: Gateway, db: asyncpg.Connection, tmp_path: Path
) -> None:
    out = await run_program("ag_ui_client.ts", tmp_path, gateway.base_url, "What is 23*19?", "Add a task to buy milk")
    assert '-> calculator {"expression":"23*19"}' in out
    assert '<- {"expression":"23*19","result":437}' in out
    assert "437. (simulated)" in out
    deleted = await run_program("ag_ui_client.ts", tmp_path, gateway.base_url, "delete task 1")
    assert "allowed: " in deleted
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
