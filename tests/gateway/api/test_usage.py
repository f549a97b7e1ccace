"""`/api/v1/usage`: tokens, times and cost, aggregated in Postgres."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from gateway.domain.errors import Overloaded
from gateway.simulator import Fault, Simulator
from gateway.store.database import Database
from gateway.store.usage_report import UsageReports, build_aggregate_query
from tests.auth_helpers import Keyring
from tests.stack import Gateway, ServeSharedGateway, Stream, insert_rows, serve_gateway

INSERT = """
INSERT INTO turn_usage (turn_id, owner, key, model_name, status, steps, prompt_tokens, cached_tokens, completion_tokens,
                        reasoning_tokens, total_tokens, queue_time, model_time, generation_time, cost_usd, at)
SELECT gen_random_uuid(), $1, $2, $3, 'completed', 2, 100, 25, 10, 4, 110, 0.5, 0.25, $4, $5, $6
FROM generate_series(1, $7)
"""


def get_day(ago: int = 0) -> date:
    """Return today, or an earlier day: a run may last beyond midnight."""
    return datetime.now(UTC).date() - timedelta(days=ago)


def make_time(day: date, hour: int = 12) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


async def insert_usage(gateway: Gateway) -> Gateway:
    """Insert turns of two users and two models on three days."""
    days = [get_day(ago) for ago in (0, 1, 40)]
    turns = [
        ("ada", "laptop", "big", 0.125, 0.5, make_time(days[0], 0), 2),
        ("ada", "server", "small", 0.125, None, make_time(days[1]), 1),
        ("bob", None, "big", 0.0, 0.25, make_time(days[1], 0), 1),
        ("bob", "=cmd()", "big", 0.125, 1.0, make_time(days[2]), 1),
    ]
    await insert_rows(gateway, INSERT, turns)
    return gateway


@pytest.fixture(scope="module")
async def gateway_with_usage(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await insert_usage(await serve_shared_gateway())


async def get_usage(gateway: Gateway, query: str = "", **options: Any) -> Any:
    reply = await gateway.get(f"/api/v1/usage?{query}", **options)
    assert reply.status == 200, reply.body
    return reply.body


async def test_step_and_turn_report_tokens_times_speed_and_cost(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat_stream("What is 23*19?")
    steps, (end,) = reply.get_event_data("step.completed"), reply.get_event_data("turn.completed")
    assert len(steps) == 2
    for figures in (*steps, end):
        tokens = figures["usage"]
        fresh = tokens["prompt_tokens"] - tokens["cached_tokens"]
        micro = fresh * 0.15 + tokens["cached_tokens"] * 0.075 + tokens["completion_tokens"] * 0.60
        assert figures["cost_usd"] == pytest.approx(micro / 1e6, abs=1e-8)
        assert figures["tokens_per_second"] == pytest.approx(500, rel=0.01)  # speed of the simulator
        assert tokens["queue_time"] > 0
        assert tokens["model_time"] > tokens["generation_time"] > 0
        assert tokens["reasoning_tokens"] > 0
    for name, value in end["usage"].items():
        assert value == pytest.approx(sum(step["usage"][name] for step in steps))
    turn_view = (await gateway.get(f"/api/v1/turns/{reply.headers['x-turn-id']}")).body
    assert (turn_view["usage"], turn_view["cost_usd"]) == (end["usage"], end["cost_usd"])
    report = (await gateway.chat("What is 2*3?")).body["usage"]
    assert report["tokens_per_second"] == pytest.approx(500, rel=0.01)
    usage_report = await get_usage(gateway)
    (row,) = usage_report["rows"]
    assert row == {"day": get_day().isoformat()} | usage_report["total"]
    assert row["turns"] == 2
    assert row["prompt_tokens"] == end["usage"]["prompt_tokens"] + report["prompt_tokens"]
    assert row["cost_usd"] == pytest.approx(await db.fetchval("SELECT sum(cost_usd) FROM turns"))
    assert (row["completed"], row["failed"]) == (2, 0)


async def test_turn_that_fails_in_its_second_step_is_charged_for_the_first(gateway: Gateway) -> None:
    waiting_turn = (await gateway.chat("What is 23*19?", approval="always")).body
    gateway.simulator.faults.add_faults(
        Fault(kind="status", status=400, body={"error": {"message": "no", "code": "x"}})
    )
    answer = {"input_id": waiting_turn["inputs"][0]["input_id"], "action": "accept"}
    await gateway.post(f"/api/v1/turns/{waiting_turn['turn_id']}/input", answer)
    path = f"{gateway.base_url}/api/v1/turns/{waiting_turn['turn_id']}/events"
    async with gateway.session.get(path) as response:
        events = [event async for event in Stream(response).read_events()]
    (step,) = [event.data for event in events if event.type == "step.completed"]
    assert events[-2].type == "turn.failed"
    row = (await get_usage(gateway))["total"]
    assert (row["turns"], row["failed"], row["cost_usd"], row["unpriced_turns"]) == (1, 1, step["cost_usd"], 0)
    assert row["prompt_tokens"] == step["usage"]["prompt_tokens"] > 0


async def test_default_report_is_the_last_thirty_days_by_day(gateway_with_usage: Gateway) -> None:
    report = await get_usage(gateway_with_usage)
    assert [row["day"] for row in report["rows"]] == [str(get_day(1)), str(get_day())]
    assert (report["from"], report["to"]) == tuple(
        make_time(get_day(ago), 0).isoformat().replace("+00:00", "Z") for ago in (29, -1)
    )
    assert report["total"] == {
        "turns": 4,
        "completed": 4,
        "failed": 0,
        "cancelled": 0,
        "up": 0,
        "down": 0,
        "steps": 8,
        "prompt_tokens": 400,
        "cached_tokens": 100,
        "cached_share": 0.25,
        "completion_tokens": 40,
        "reasoning_tokens": 16,
        "total_tokens": 440,
        "queue_time": 2.0,
        "model_time": 1.0,
        "generation_time": 0.375,
        "tokens_per_second": 80.0,
        "cost_usd": 1.25,
        "unpriced_turns": 1,
        "cached_turns": 0,
    }
    assert report["truncated"] is False


@pytest.mark.parametrize(
    ("query", "groups"),
    [
        ("group_by=user", [("ada", 3), ("bob", 1)]),
        ("group_by=model", [("big", 3), ("small", 1)]),
        ("group_by=key", [("laptop", 2), ("server", 1), (None, 1)]),
        ("group_by=user,model", [("ada", "big", 2), ("ada", "small", 1), ("bob", "big", 1)]),
        ("group_by=model&user=bob", [("big", 1)]),
        ("group_by=model&user=unknown", []),
        ("group_by=user&from={today}", [("ada", 2)]),
        ("group_by=user&to={yesterday}", [("ada", 1), ("bob", 1)]),
        ("group_by=user&from={yesterday}T06:00&to={today}T00:00Z", [("ada", 1)]),
        ("group_by=user&from={long_ago}", [("ada", 3), ("bob", 2)]),
        ("group_by=conversation", [(None, 4)]),
    ],
)
async def test_turns_are_grouped_and_filtered(gateway_with_usage: Gateway, query: str, groups: list[Any]) -> None:
    days = {"today": get_day(), "yesterday": get_day(1), "long_ago": get_day(100)}
    report = await get_usage(gateway_with_usage, query.format(**days))
    names = report["group_by"]
    assert [(*(row[name] for name in names), row["turns"]) for row in report["rows"]] == groups
    assert report["total"]["turns"] == sum(group[-1] for group in groups)
    assert all(set(row) == {*names, *report["total"]} for row in report["rows"])


async def test_turns_are_grouped_by_user_key_and_conversation(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    first = (await keyring.chat("root", "Hello", conversation_id="new")).body
    await keyring.chat("root", "Hello again", conversation_id=first["conversation_id"])
    await keyring.chat("ada", "Hello")
    await keyring.chat("ada", "Hello", store=False)
    async with keyring.gateway.session.delete(
        f"{keyring.gateway.base_url}/api/v1/conversations/{first['conversation_id']}", headers=keyring.headers("root")
    ) as deleted:
        assert deleted.status == 204
    rows = (await keyring.get("root", "/api/v1/usage?group_by=user,key,conversation")).body["rows"]
    assert [(row["user"], row["key"], row["conversation"], row["turns"]) for row in rows] == [
        ("ada", keyring.rows["ada"].prefix, None, 2),
        ("root", keyring.rows["root"].prefix, first["conversation_id"], 2),
    ]


async def test_users_see_only_their_own_usage(keyring: Keyring) -> None:
    await insert_usage(keyring.gateway)
    for role in ("user", "viewer"):
        await keyring.create_key("ada", role=role)
        report = (await keyring.get("ada", "/api/v1/usage?group_by=user")).body
        assert ([row["user"] for row in report["rows"]], report["total"]["turns"]) == (["ada"], 3)
        assert (await keyring.get("ada", "/api/v1/usage?user=ada")).body["total"]["turns"] == 3
        rejection = await keyring.get("ada", "/api/v1/usage?user=bob")
        assert (rejection.status, rejection.body["error"]["code"]) == (403, "forbidden")
    assert (await keyring.get("root", "/api/v1/usage?user=bob")).body["total"]["turns"] == 1
    assert (await keyring.get("root", "/api/v1/usage?group_by=user")).body["total"]["turns"] == 4


async def test_rating_of_a_turn_counts_in_its_group(gateway: Gateway) -> None:
    for rating in ("up", "down", "up"):
        turn = (await gateway.chat("Hello")).body["turn_id"]
        await gateway.post(f"/api/v1/turns/{turn}/feedback", {"rating": rating})
    (row,) = (await get_usage(gateway, "group_by=model"))["rows"]
    assert (row["turns"], row["up"], row["down"]) == (3, 2, 1)


async def test_step_of_a_fallback_model_has_the_price_of_that_model(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    error_body = {"error": {"message": "over capacity", "code": "over_capacity"}}
    simulator.faults.add_faults(Fault(kind="status", status=503, body=error_body, match="gpt-oss-120b"))
    settings = {"model_fallbacks": "openai/gpt-oss-20b", "model_retries": 0}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        reply = await gateway.chat_stream("Hello")
    (retry,), (step,) = reply.get_event_data("model.retry"), reply.get_event_data("step.completed")
    assert retry["model"] == "openai/gpt-oss-20b"
    tokens = step["usage"]
    fresh = tokens["prompt_tokens"] - tokens["cached_tokens"]
    micro = fresh * 0.075 + tokens["cached_tokens"] * 0.0375 + tokens["completion_tokens"] * 0.30
    assert step["cost_usd"] == pytest.approx(micro / 1e6, abs=1e-8)
    assert reply.get_event_data("turn.completed")[0]["cost_usd"] == step["cost_usd"]


async def test_retried_model_call_is_charged_twice(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="unknown_tool"))
    reply = await gateway.chat_stream("Hello")
    assert [retry["reason"] for retry in reply.get_event_data("model.retry")] == ["tool_call_unreadable"]
    (step,) = reply.get_event_data("step.completed")
    prompts = [request for request in gateway.simulator.requests if "messages" in request]
    assert len(prompts) == 2
    once = (await gateway.chat_stream("Hello")).get_event_data("step.completed")[0]["usage"]["prompt_tokens"]
    assert step["usage"]["prompt_tokens"] > 2 * once


async def test_usage_is_returned_as_csv_on_request(gateway_with_usage: Gateway) -> None:
    path = f"/api/v1/usage?group_by=user,key&from={get_day(100)}"
    for query, headers in (("&format=csv", {}), ("", {"Accept": "text/csv"})):
        async with gateway_with_usage.session.get(
            f"{gateway_with_usage.base_url}{path}{query}", headers=headers
        ) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/csv; charset=utf-8"
            assert 'filename="usage-20' in response.headers["content-disposition"]
            lines = list(csv.DictReader(io.StringIO(await response.text())))
        assert [(line["user"], line["key"], line["turns"], line["cost_usd"]) for line in lines] == [
            ("ada", "laptop", "2", "1.0"),
            ("ada", "server", "1", "0.0"),
            ("bob", "'=cmd()", "1", "1.0"),
            ("bob", "", "1", "0.25"),
        ]
    async with gateway_with_usage.session.get(
        f"{gateway_with_usage.base_url}{path}&format=json", headers={"Accept": "text/csv"}
    ) as response:
        assert response.content_type == "application/json"


@pytest.mark.parametrize(
    "query",
    [
        "group_by=unknown",
        "group_by=",
        "group_by=day,unknown",
        "from=yesterday",
        "to=2026-13-01",
        "from=2026-01-02&to=2026-01-01",
        "from=2020-01-01&to=2026-01-01",
        "to=9999-12-31",
        "to=0001-01-01",
        "format=xml",
    ],
)
async def test_invalid_query_is_a_422(shared_gateway: Gateway, query: str) -> None:
    assert (await shared_gateway.get(f"/api/v1/usage?{query}")).status == 422


async def test_many_groups_are_truncated_and_slow_reports_are_aborted(
    gateway: Gateway, database_url: str, db: asyncpg.Connection
) -> None:
    for owner in ("ada", "bob"):
        await db.execute(INSERT, owner, "laptop", "big", 0.125, 0.5, make_time(get_day(), 0), 20_000)
    await db.execute("UPDATE turn_usage SET at = at - interval '90 days' WHERE owner = 'bob'")
    await db.execute("UPDATE turn_usage SET key = 'key ' || (random() * 9)::int WHERE owner = 'ada'")
    await db.execute("VACUUM ANALYZE turn_usage")
    gateway.state.usage_reports.max_groups = 2
    report = await get_usage(gateway, "group_by=day,user,key")
    assert (len(report["rows"]), report["truncated"], report["total"]["turns"]) == (2, True, 20_000)
    database = Database(database_url)
    since, until = make_time(get_day(), 0), make_time(get_day(-1), 0)
    try:
        with pytest.raises(Overloaded, match="shorter range"):
            await UsageReports(database, seconds=0.001).aggregate(["day"], since, until)
        async with database.engine.connect() as connection:
            for by_owner in (False, True):
                query = f"EXPLAIN {build_aggregate_query(['day', 'key'], of_owner=by_owner)}"
                values = {"since": make_time(get_day(), 1), "until": until, "max_rows": 10} | (
                    {"owner": "ada"} if by_owner else {}
                )
                plan = "\n".join(row[0] for row in await connection.execute(text(query), values))
                assert "using ix_turn_usage_" in plan
                assert "Seq Scan on turn_usage" not in plan
    finally:
        await database.close()
