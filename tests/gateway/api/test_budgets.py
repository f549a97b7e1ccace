"""Budgets of users and keys, checked before turns and before steps."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.domain.messages import Budget
from gateway.simulator import Fault, Simulator, SimulatorSettings, serve_simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.mcp_client.test_idempotency_keys import BookingServer, serve_booking
from tests.stack import TIMEOUTS, Gateway, serve_gateway

PROMPT_WITH_TOOL = "Add a task to rest"


async def test_turn_over_the_user_budget_is_rejected_until_the_next_day(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    budget = {"budget_tokens_per_day": 100, "budget_tokens_per_month": 100_000}
    async with serve_gateway(database_url, simulator, tools_url, **budget) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        await keyring.create_key("bob")
        first = await keyring.chat("ada", "hello")
        assert first.status == 200
        for prompt in ("hello", PROMPT_WITH_TOOL):
            rejection = await keyring.chat("ada", prompt)
            assert (rejection.status, rejection.body["error"]["code"]) == (402, "budget_exceeded")
            assert "100 tokens a day" in rejection.body["error"]["message"]
            assert int(rejection.headers["Retry-After"]) <= 86_400
        openai = await keyring.post("ada", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert (openai.status, openai.body["error"]["code"]) == (402, "insufficient_quota")
        assert (await keyring.chat("bob", "hello")).status == 200
        await db.execute("UPDATE turn_usage SET at = at - interval '1 day'")
        fresh = await keyring.chat("ada", "hello")
        first_of_month = await db.fetchval("SELECT extract(day FROM now() AT TIME ZONE 'UTC') = 1")
        assert fresh.status == 200
        budget_view = (await keyring.get("ada", "/api/v1/budget")).body
        assert budget_view["key"] is None
        assert budget_view["user"]["tokens_today"] > 100
        assert budget_view["user"]["tokens_this_month"] > budget_view["user"]["tokens_today"] or first_of_month
        assert budget_view["user"]["budget"]["tokens_per_day"] == 100


async def test_turn_fails_between_steps_when_the_budget_is_exhausted(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=1) as gateway:
        reply = await gateway.chat_stream(PROMPT_WITH_TOOL)
        assert reply.status == 200
        assert [result["outcome"] for result in reply.get_event_data("tool.result")] == ["ok"]
        [failed] = reply.get_event_data("turn.failed")
        assert failed["error"]["code"] == "budget_exceeded"
        assert len(reply.get_event_data("step.completed")) == 1
        assert await db.fetchval("SELECT total_tokens > 0 FROM turn_usage") is True
        assert (await gateway.chat(PROMPT_WITH_TOOL)).status == 402


async def test_deleting_turns_does_not_refund_the_budget(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_month=50) as gateway:
        turn = (await gateway.chat("hello", conversation_id="new")).body
        url = f"{gateway.base_url}/api/v1/conversations/{turn['conversation_id']}"
        async with gateway.session.delete(url) as deleted:
            assert deleted.status == 204
        rejection = await gateway.chat("hello")
        assert (rejection.status, "a month" in rejection.body["error"]["message"]) == (402, True)


async def test_ephemeral_turn_counts_against_the_budget(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=50) as gateway:
        assert [(await gateway.chat("hello", store=False)).status for _ in range(2)] == [200, 402]


@pytest.mark.parametrize(
    "budget",
    [Budget(tokens_per_day=9), Budget(tokens_per_month=9), Budget(usd_per_day=1e-9), Budget(usd_per_month=1e-9)],
)
async def test_key_budget_applies_in_addition_to_the_owner_budget(keyring: Keyring, budget: Budget) -> None:
    other_headers = await keyring.create_key("ada")
    await keyring.create_key("ada", budget=budget)
    assert [(await keyring.chat("ada", "hello")).status for _ in range(2)] == [200, 402]
    body = {"messages": [{"role": "user", "content": "hello"}]}
    assert (await keyring.gateway.post("/api/v1/chat", body, headers=other_headers)).status == 200
    budget_view = (await keyring.get("ada", "/api/v1/budget")).body
    assert 0 < budget_view["key"]["tokens_today"] < budget_view["user"]["tokens_today"]
    assert 0 < budget_view["key"]["usd_today"] < budget_view["user"]["usd_today"]
    assert (await keyring.post("ada", "/api/v1/keys", {})).status == 403  # a second key would have its own budget


async def test_gateway_without_budgets_runs_no_budget_queries(gateway: Gateway) -> None:
    from sqlalchemy import event

    queries: list[str] = []
    engine = gateway.state.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    await gateway.chat(PROMPT_WITH_TOOL)
    assert not [query for query in queries if "turn_usage" in query or "budget" in query]


# --- concurrency


async def test_concurrent_turns_on_two_workers_overdraw_a_budget_by_at_most_one_step(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        turn_tokens = (await gateway.chat("hello")).body["usage"]["total_tokens"]
    await db.execute("DELETE FROM turn_usage")
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=turn_tokens * 5 // 2)
            )
            for _ in range(2)
        ]
        async with asyncio.timeout(30):
            replies = await asyncio.gather(*(workers[n % 2].chat("hello") for n in range(16)))
        assert Counter(reply.status for reply in replies) == {200: 3, 402: 13}
        assert await db.fetchval("SELECT sum(total_tokens) FROM turn_usage") == 3 * turn_tokens
        budget_view = (await workers[0].get("/api/v1/budget")).body["user"]
        assert (budget_view["tokens_today"], budget_view["tokens_set_aside"]) == (3 * turn_tokens, 0)


async def test_running_step_reserves_its_maximum_cost_until_it_ends(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1))
    short_wait = replace(TIMEOUTS, budget_wait=0.2)
    budget = {"budget_tokens_per_day": 10_000}
    async with (
        serve_gateway(database_url, simulator, tools_url, **budget) as gateway,
        serve_gateway(database_url, simulator, tools_url, timeouts=short_wait, **budget) as other,
    ):
        async with gateway.stream("forever", max_tokens=5_000) as stream:
            turn_id = (await stream.read_until("turn.started")).data["turn_id"]
            await simulator.wait_until(lambda s: len(s.requests) == 1)
            budget_view = (await gateway.get("/api/v1/budget")).body["user"]
            assert 5_000 < budget_view["tokens_set_aside"] < 10_000
            rejection = await other.chat("hello", max_tokens=5_000)
            assert (rejection.status, rejection.body["error"]["code"]) == (402, "budget_exceeded")
            assert ("reserved" in rejection.body["error"]["message"], rejection.headers["Retry-After"]) == (True, "1")
            assert (await gateway.chat("hello", max_tokens=1_000)).status == 200  # fits into the rest of the budget
            waiting_request = asyncio.create_task(gateway.chat("hello", max_tokens=5_000))
            assert (await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)).status == 200
        assert (await waiting_request).status == 200
        assert (await gateway.get("/api/v1/budget")).body["user"]["tokens_set_aside"] == 0


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
async def test_worker_that_lost_the_turn_reserves_nothing_and_calls_no_model(
    database_url: str, simulator: Simulator, db: asyncpg.Connection, store: bool
) -> None:
    booking = BookingServer()
    # Between two of its looks for turns without a worker, which would claim this one back.
    settings = {"budget_tokens_per_day": 1_000_000, "heartbeat_seconds": 20}
    async with serve_booking(database_url, simulator, booking, **settings) as (gateway,):
        async with gateway.stream("call slow {}", store=store) as stream:
            async with asyncio.timeout(30):
                await booking.started.wait()
            await db.execute("UPDATE turns SET epoch = epoch + 1, worker_id = gen_random_uuid()")
            await db.execute("UPDATE budget_holds SET tokens = 77, step_tokens = 7")  # by the new owner
            booking.release.set()
            closing = await stream.read_until("stream.closing")
        await eventually(lambda: not gateway.state.turn_service.running_turns)
    assert closing.data["reason"] == "storage_unavailable"
    assert len(simulator.requests) == 1
    assert tuple(await db.fetchrow("SELECT tokens, step_tokens FROM budget_holds") or ()) == (77, 7)


async def test_reservation_of_a_dead_worker_is_released(
    workers: list[Gateway], slow_simulator: Simulator, db: asyncpg.Connection
) -> None:
    first, second = workers
    keyring = Keyring(first)
    headers = await keyring.create_key("ada", budget=Budget(tokens_per_day=1_000_000))
    url = f"{first.base_url}/api/v1/chat/stream"
    body = {"messages": [{"role": "user", "content": "count to 300"}], "on_disconnect": "continue"}
    async with first.session.post(url, json=body, headers=headers) as response:
        turn_id = response.headers["x-turn-id"]
        while b"text.delta" not in await response.content.readline():
            pass
        slow_simulator.pause_streams()
        assert (await second.get("/api/v1/budget", headers=headers)).body["key"]["tokens_set_aside"] > 60_000
        await db.execute("UPDATE turns SET worker_id = gen_random_uuid()")  # as if its worker had died
        slow_simulator.resume_streams()
        await eventually(lambda: db.fetchval("SELECT status <> 'running' FROM turns"))
    assert (await second.get("/api/v1/budget", headers=headers)).body["key"]["tokens_set_aside"] == 0
    usage = await db.fetchrow("SELECT * FROM turn_usage")
    response_length = await db.fetchval("SELECT length(response) FROM turns WHERE id = $1::uuid", turn_id)
    assert usage["status"] == "completed"
    assert usage["completion_tokens"] > response_length // 4  # includes the partial output of the interrupted step


# --- failed and cancelled turns


@pytest.mark.parametrize(
    ("fault", "settings", "code"),
    [
        pytest.param(Fault(kind="cut", after_chunks=40), {}, "model_stream_broken", id="cut"),
        pytest.param(Fault(kind="abort", after_chunks=40), {}, "model_stream_broken", id="abort"),
        pytest.param(
            Fault(kind="stall", after_chunks=40),
            {"agent_timeout": 5},
            "turn_timeout",
            id="turn timeout",
            marks=pytest.mark.faults,
        ),
        pytest.param(
            Fault(kind="stall", after_chunks=40, times=9),
            {"model_idle_timeout": 1},
            "model_stream_broken",
            id="idle timeout",
            marks=pytest.mark.faults,
        ),
    ],
)
async def test_usage_of_a_failed_turn_counts(
    database_url: str,
    simulator: Simulator,
    tools_url: str,
    db: asyncpg.Connection,
    fault: Fault,
    settings: dict[str, Any],
    code: str,
) -> None:
    simulator.faults.add_faults(fault)
    async with serve_gateway(database_url, simulator, tools_url, **settings, budget_tokens_per_day=300) as gateway:
        turn = await gateway.chat_stream("count to 50", reasoning_effort="none", model="qwen/qwen3.8-27b")
        usage = await db.fetchrow("SELECT * FROM turn_usage")
        assert (usage["status"], usage["error_code"]) == ("failed", code)
        assert usage["prompt_tokens"] > 300  # system prompt and tool definitions
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] >= max(1, len(turn.text) // 4)
        assert usage["cost_usd"] > 0
        assert (await gateway.chat("hello")).status == 402


@pytest.mark.parametrize("method", ["cancel", "disconnect"])
async def test_usage_of_a_cancelled_turn_counts(
    database_url: str, tools_url: str, db: asyncpg.Connection, method: str
) -> None:
    async with (
        serve_simulator(SimulatorSettings(tokens_per_second=300, first_token_delay=0)) as simulator,
        serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=300) as gateway,
    ):
        async with gateway.stream("count to 5000") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            await stream.read_until("text.delta")
            if method == "cancel":
                await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
        usage = await eventually(lambda: db.fetchrow("SELECT * FROM turn_usage"))
        assert (usage["status"], usage["cost_usd"] > 0) == ("cancelled", True)
        assert usage["prompt_tokens"] > 300
        assert usage["completion_tokens"] > 0
        turn_view = (await gateway.get(f"/api/v1/turns/{turn_id}")).body
        assert (turn_view["usage"]["total_tokens"], turn_view["cost_usd"]) == (usage["total_tokens"], usage["cost_usd"])
        assert (await gateway.chat("hello")).status == 402


async def test_usage_of_invalid_structured_outputs_counts(gateway: Gateway, db: asyncpg.Connection) -> None:
    structured = {"response_format": {"type": "json_object"}, "tools": []}
    once = (await gateway.chat("Answer in JSON", **structured)).body["usage"]
    gateway.simulator.faults.add_faults(Fault(kind="text", text="no JSON", match="JSON"))
    twice = (await gateway.chat("Answer in JSON", **structured)).body["usage"]
    assert twice["prompt_tokens"] > 2 * once["prompt_tokens"]
    gateway.simulator.faults.add_faults(Fault(kind="text", text="no JSON", match="", times=9))
    assert (await gateway.chat("Answer in JSON", **structured)).status == 502
    usage = await db.fetchrow("SELECT * FROM turn_usage WHERE error_code = 'structured_output_invalid'")
    assert usage["prompt_tokens"] >= twice["prompt_tokens"]
    assert usage["cost_usd"] > 0


async def test_turn_without_a_model_response_costs_nothing(gateway: Gateway, db: asyncpg.Connection) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=500, times=9))
    assert (await gateway.chat("hello")).status == 503
    assert await db.fetchval("SELECT total_tokens FROM turn_usage") == 0
