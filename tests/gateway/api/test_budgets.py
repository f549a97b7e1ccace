"""Budgets of users and keys: checked before a turn and between its steps, and not to be won back."""

import asyncpg
import pytest

from gateway.llm.simulator import Simulator
from gateway.messages import Budget
from tests.keyring import Keyring
from tests.stack import Gateway, serve_gateway

TOOLS = "Add a task to rest"


async def test_turn_beyond_the_budget_of_a_user_is_refused_until_the_day_is_over(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    budget = {"budget_tokens_per_day": 100, "budget_tokens_per_month": 100_000}
    async with serve_gateway(database_url, simulator, tools_url, **budget) as gateway:
        ring = Keyring(gateway)
        await ring.make("ada")
        await ring.make("bob")
        first = await ring.chat("ada", "hello")
        assert first.status == 200
        for prompt in ("hello", TOOLS):
            refused = await ring.chat("ada", prompt)
            assert (refused.status, refused.body["error"]["code"]) == (402, "budget_exceeded")
            assert "100 tokens a day" in refused.body["error"]["message"]
            assert int(refused.headers["Retry-After"]) <= 86_400
        openai = await ring.post("ada", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert (openai.status, openai.body["error"]["code"]) == (402, "budget_exceeded")
        assert (await ring.chat("bob", "hello")).status == 200
        await db.execute("UPDATE turn_usage SET at = at - interval '1 day'")
        fresh = await ring.chat("ada", "hello")
        first_of_month = await db.fetchval("SELECT extract(day FROM now() AT TIME ZONE 'UTC') = 1")
        assert fresh.status == 200
        figures = (await ring.get("ada", "/api/v1/budget")).body
        assert figures["key"] is None
        assert figures["user"]["tokens_today"] > 100
        assert figures["user"]["tokens_this_month"] > figures["user"]["tokens_today"] or first_of_month
        assert figures["user"]["budget"]["tokens_per_day"] == 100


async def test_turn_ends_between_its_steps_when_the_budget_is_used_up(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=1) as gateway:
        reply = await gateway.chat_stream(TOOLS)
        assert reply.status == 200
        assert [result["outcome"] for result in reply.of("tool.result")] == ["ok"]
        [failed] = reply.of("turn.failed")
        assert failed["error"]["code"] == "budget_exceeded"
        assert len(reply.of("step.completed")) == 1
        assert await db.fetchval("SELECT total_tokens > 0 FROM turn_usage") is True
        assert (await gateway.chat(TOOLS)).status == 402


async def test_deleting_turns_gives_nothing_back(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_month=50) as gateway:
        turn = (await gateway.chat("hello", conversation_id="new")).body
        url = f"{gateway.base_url}/api/v1/conversations/{turn['conversation_id']}"
        async with gateway.session.delete(url) as deleted:
            assert deleted.status == 204
        refused = await gateway.chat("hello")
        assert (refused.status, "a month" in refused.body["error"]["message"]) == (402, True)


async def test_turn_of_which_nothing_is_kept_counts_too(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=50) as gateway:
        assert [(await gateway.chat("hello", store=False)).status for _ in range(2)] == [200, 402]


@pytest.mark.parametrize(
    "budget",
    [Budget(tokens_per_day=9), Budget(tokens_per_month=9), Budget(usd_per_day=1e-9), Budget(usd_per_month=1e-9)],
)  # fmt: skip
async def test_key_has_its_own_budget_beside_its_owners(locked: Keyring, budget: Budget) -> None:
    other = await locked.make("ada")
    await locked.make("ada", budget=budget)
    assert [(await locked.chat("ada", "hello")).status for _ in range(2)] == [200, 402]
    body = {"messages": [{"role": "user", "content": "hello"}]}
    assert (await locked.gateway.post("/api/v1/chat", body, headers=other)).status == 200
    figures = (await locked.get("ada", "/api/v1/budget")).body
    assert 0 < figures["key"]["tokens_today"] < figures["user"]["tokens_today"]
    assert 0 < figures["key"]["usd_today"] < figures["user"]["usd_today"]
    assert (await locked.post("ada", "/api/v1/keys", {})).status == 403  # it would be a second budget


async def test_gateway_without_budgets_asks_the_database_nothing_about_them(gateway: Gateway) -> None:
    from sqlalchemy import event

    queries: list[str] = []
    engine = gateway.state.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    await gateway.chat(TOOLS)
    assert not [query for query in queries if "turn_usage" in query]
