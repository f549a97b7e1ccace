"""Usage, keys, operations and the audit log in Chromium."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Page, expect

from gateway.domain.messages import Budget, KeyLimits
from gateway.simulator import Simulator
from gateway_console.pages.keys import build_key_changes, build_key_schema
from gateway_console.pages.usage import build_latencies, describe_budget, sum_tools
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway_console.browsing import (
    check_accessibility,
    choose,
    go,
    needs_axe,
    take_pictures,
    wait_until_connected,
)
from tests.gateway_console.running_console import PICTURES, needs_chromium, run_console
from tests.stack import Gateway, ServeSharedGateway, serve_gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), needs_chromium, needs_axe]
ADMIN = "an-admin-key-of-the-console-tests"
ATTACK = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await serve_shared_gateway(api_key=ADMIN)


@pytest.fixture(scope="module")
async def keyring(gateway: Gateway) -> Keyring:
    keyring = Keyring(gateway)
    await keyring.create_key("ada", name=f"Ada {ATTACK}")
    await keyring.create_key("eve", "viewer")
    return keyring


@pytest.fixture(scope="module")
async def console(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    async with run_console(gateway.base_url, tmp_path_factory.mktemp("console")) as url:
        yield url


async def sign_in(page: Page, console: str, credential: str, path: str = "/") -> None:
    await page.goto(f"{console}{path}")
    await page.get_by_label("Key or token").fill(credential)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(f"{console}{path}")
    await wait_until_connected(page)


async def test_key_is_made_limited_rotated_and_revoked(
    gateway: Gateway, console: str, page: Page, keyring: Keyring
) -> None:
    await sign_in(page, console, ADMIN, "/keys")
    await page.get_by_role("button", name="New key").click()
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_label("Owner").fill("bob")
    await choose(page, "Role", "user")
    await choose(page, "Only these areas", "chat")
    await page.keyboard.press("Escape")
    await page.get_by_label("Tokens a day").fill("50000")
    await page.get_by_label("Requests in a window").fill("7")
    await page.get_by_role("button", name="Create").click()
    secret = str(await page.locator(".secret").text_content())
    assert (await gateway.get("/api/v1/models", headers={"X-API-Key": secret})).status == 200
    await page.get_by_role("button", name="I have stored it").click()
    card = page.locator(".key", has_text="laptop")
    await expect(card).to_contain_text("50,000 tokens a day")
    await expect(card).to_contain_text("7 in 60 s")
    await expect(page.get_by_text(f"Ada {ATTACK}")).to_be_visible()
    assert secret not in await page.content()
    await take_pictures(page, "keys")
    await page.get_by_role("button", name="Rotate laptop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    await page.get_by_role("button", name="I have stored it").click()
    await expect(card).to_have_count(2)
    for remaining in (1, 0):
        await page.get_by_role("button", name="Revoke laptop").first.click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(page.get_by_role("button", name="Revoke laptop")).to_have_count(remaining)
    assert (await gateway.get("/api/v1/models", headers={"X-API-Key": secret})).status == 401
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0


async def test_limits_of_a_key_are_changed(console: str, page: Page, keyring: Keyring) -> None:
    limits, budget = KeyLimits(streams=2), Budget(tokens_per_day=0)
    await keyring.create_key("cem", name="cem's key", tools=("calc*",), limits=limits, budget=budget)
    await sign_in(page, console, ADMIN, "/keys")
    await page.get_by_role("button", name="Edit cem's key").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Turns at once")).to_have_value("2")
    await dialog.get_by_label("Tokens a day").fill("")
    await dialog.get_by_label("USD a month").fill("4.5")
    await dialog.get_by_label("Turns at once").fill("")
    await dialog.get_by_label("Name").fill("cem's laptop")
    await take_pictures(page, "key-changes")
    await dialog.get_by_role("button", name="Save").click()
    card = page.locator(".key", has_text="cem's laptop")
    await expect(card).to_contain_text("$4.5 a month")
    await expect(card).to_contain_text("calc*")
    await expect(card).not_to_contain_text("tokens a day")
    await expect(card).not_to_contain_text("Turns at once")
    [key] = [key for key in (await keyring.get("cem", "/api/v1/keys")).body["keys"] if key["name"] == "cem's laptop"]
    assert (key["limits"], key["budget"]["tokens_per_day"], key["expires_at"]) == (None, None, None)

    async def may_chat() -> bool:
        return (await keyring.chat("cem", "Hello")).status == 200

    await eventually(may_chat)


async def test_cost_is_shown_by_day_model_user_and_key(console: str, page: Page, keyring: Keyring) -> None:
    await keyring.chat("ada", "What is 23*19?")
    await sign_in(page, console, ADMIN, "/usage")
    await expect(page.get_by_role("img", name="Cost in USD by day and model")).to_be_visible()
    await expect(page.get_by_role("cell", name="ada")).to_be_visible()
    await expect(page.get_by_role("cell", name="calculator")).to_be_visible()
    await take_pictures(page, "usage")
    await page.get_by_role("button", name="90 days").click()
    await expect(page.get_by_role("cell", name="ada")).to_be_visible()


async def test_waiting_approval_of_another_user_is_watched_and_cancelled(
    gateway: Gateway, console: str, page: Page, keyring: Keyring
) -> None:
    turn = (await keyring.chat("ada", f"Add a task to wait {ATTACK}", approval="always")).body["turn_id"]
    await sign_in(page, console, ADMIN, "/operations")
    row = page.get_by_role("row", name="ada").filter(has=page.get_by_role("link", name="Watch"))
    await expect(row).to_contain_text("approval of add_task of tools")
    await expect(page.get_by_role("cell", name="has a lease")).to_be_visible()
    await expect(page.get_by_role("cell", name="answers")).to_be_visible()
    await take_pictures(page, "operations")
    await row.get_by_role("link", name="Watch").click()
    await expect(page.locator(".timeline-wait")).to_contain_text("Waits for approval")
    await take_pictures(page, "live-turn")
    assert "owned" not in await page.title()
    assert await page.locator("main img, main script").count() == 0
    await go(page, f"{console}/operations")
    await row.get_by_role("button", name="Cancel").click()
    await page.get_by_role("button", name="Cancel the turn").click()
    await expect(row).to_have_count(0)
    assert (await keyring.get("ada", f"/api/v1/turns/{turn}")).body["status"] == "cancelled"
    await go(page, f"{console}/audit")
    await choose(page, "Action", "turn.cancel")
    await expect(page.get_by_role("row")).to_have_count(2)
    await expect(page.get_by_role("cell", name=f"turn {turn}")).to_be_visible()
    await take_pictures(page, "audit")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_sign_in_is_accessible_and_sign_out_ends_the_session(
    console: str, page: Page, scheme: Literal["light", "dark"]
) -> None:
    await page.emulate_media(color_scheme=scheme)
    await page.goto(f"{console}/keys")
    await page.screenshot(path=PICTURES / f"sign-in-{scheme}.png")
    await check_accessibility(page)
    await sign_in(page, console, ADMIN, "/keys")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Key or token")).to_be_visible()
    await page.goto(f"{console}/keys")
    await expect(page.get_by_label("Key or token")).to_be_visible()


@pytest.mark.parametrize("path", ["/operations", "/audit", "/watch/01a21cdc-241d-77e4-8d50-5768b3c2944b"])
async def test_viewer_gets_the_gateway_s_refusal_on_pages_of_admins(
    console: str, page: Page, keyring: Keyring, path: str
) -> None:
    await sign_in(page, console, keyring.secrets["eve"], path)
    await expect(page.get_by_text("This needs the role of an admin")).to_be_visible()
    await expect(page.get_by_role("navigation")).not_to_contain_text("Audit log")


async def test_viewer_sees_own_pages_without_what_changes_something(console: str, page: Page, keyring: Keyring) -> None:
    turn = (await keyring.chat("ada", "What is 2*3?")).body["turn_id"]
    await sign_in(page, console, keyring.secrets["eve"])
    await expect(page.get_by_role("button", name="Send")).to_be_disabled()
    await go(page, f"{console}/tools")
    await page.get_by_role("link", name="calculator").click()
    await expect(page.get_by_role("button", name="Call the tool")).to_be_disabled()
    await go(page, f"{console}/servers")
    await expect(page.get_by_text("in the configuration file")).to_be_visible()
    await expect(page.get_by_role("button", name="Add servers")).to_have_count(0)
    await expect(page.get_by_role("button", name="Disable tools")).to_have_count(0)
    await go(page, f"{console}/keys")
    await expect(page.get_by_text("Owner")).to_have_count(1)
    await expect(page.get_by_text("eve", exact=True)).to_be_visible()
    await expect(page.get_by_role("button", name="New key")).to_have_count(0)
    await go(page, f"{console}/turns/{turn}")
    await expect(page.get_by_role("alert")).to_contain_text("There is no turn")
    await go(page, f"{console}/usage")
    await expect(page.get_by_text("No turn has ended")).to_be_visible()
    await expect(page.get_by_text("By user")).to_have_count(0)


def test_role_may_choose_no_higher_one_and_no_owner() -> None:
    properties = build_key_schema("user")["properties"]
    assert properties["role"]["enum"] == ["viewer", "user"]
    assert "owner" not in properties


async def test_first_key_of_an_open_gateway_leads_to_the_sign_in(
    database_url: str, simulator: Simulator, tmp_path: Path, page: Page
) -> None:
    async with (
        serve_gateway(database_url, simulator, None) as gateway,
        run_console(gateway.base_url, tmp_path) as url,
    ):
        await go(page, f"{url}/keys")
        await page.get_by_role("button", name="New key").click()
        await page.get_by_role("button", name="Create").click()
        secret = str(await page.locator(".secret").text_content())
        await page.get_by_role("button", name="I have stored it").click()
        await page.get_by_role("alert").get_by_role("link", name="Sign in").click()
        await page.get_by_label("Key or token").fill(secret)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_emptied_name_and_window_without_requests_are_sent_as_no_limit() -> None:
    changes = {"name": None, "limits": {"window_seconds": 60}, "budget": None}
    assert build_key_changes(changes) == {"name": "", "limits": None, "budget": None}
    assert build_key_changes({"limits": {"streams": 1}}) == {"limits": {"streams": 1}}


def test_budget_is_told_in_words() -> None:
    assert describe_budget({"tokens_per_day": 0, "usd_per_month": 1_250.5}) == "0 tokens a day, $1,250.5 a month"
    assert describe_budget({}) == "no limit"


def test_times_are_means_over_the_turns_of_a_day() -> None:
    rows = [
        {"day": "a", "turns": 1, "queue_time": 1.0, "model_time": 2.0},
        {"day": "a", "turns": 3, "queue_time": 1.0, "model_time": 4.0},
        {"day": "b", "turns": 0, "queue_time": 0.0, "model_time": 0.0},
    ]
    assert build_latencies(rows, ["a", "b"]) == {"queue": [0.5, None], "model": [1.5, None]}


def test_days_of_a_tool_are_one_row_with_a_weighted_mean() -> None:
    days = [
        {"server": "s", "tool": "t", "calls": 1, "errors": 1, "denied": 0, "duration_ms": 10.0},
        {"server": "s", "tool": "t", "calls": 3, "errors": 0, "denied": 1, "duration_ms": 30.0},
    ]
    [row] = sum_tools(days)
    assert (row["calls"], row["errors"], row["denied"], row["duration_ms"]) == (4, 1, 1, 25.0)
