"""`/api/v1/usage`: tokens, times and cost, added up in Postgres."""

import csv
import io
import time
from collections.abc import AsyncGenerator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from gateway.errors import Overloaded
from gateway.llm.simulator import Fault, Simulator
from gateway.store.database import Database
from gateway.store.usage_report import UsageReports
from tests.callers import believe_callers, caller
from tests.stack import Gateway, Stream, serve_gateway

INSERT = """
INSERT INTO turns (id, owner, key, status, prompt, messages, model_name, parameters, options, steps, usage, cost_usd,
                   completed_at)
SELECT gen_random_uuid(), $1, $2, 'completed', '', '[]', $3, '{}', '{}', 2, $4, $5, $6 FROM generate_series(1, $7)
"""
USAGE = (
    '{"prompt_tokens": 100, "cached_tokens": 25, "completion_tokens": 10, "reasoning_tokens": 4, "total_tokens": 110,'
    ' "queue_time": 0.5, "model_time": 0.25, "generation_time": 0.125}'
)
OLD_USAGE = '{"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, "model_time": 0.25}'
TODAY = datetime.now(UTC).date()


def at(day: date, hour: int = 12) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


@pytest.fixture
async def gateway(
    database_url: str, simulator: Simulator, tools_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Gateway]:
    believe_callers(monkeypatch)
    async with serve_gateway(database_url, simulator, tools_url) as running:
        yield running


@pytest.fixture
async def used(db: asyncpg.Connection) -> None:
    """Turns of two users with two models on three days, one before the last thirty; one without a price, one old."""
    days = [TODAY - timedelta(days=n) for n in (0, 1, 40)]
    await db.execute(INSERT, "ada", "laptop", "big", USAGE, 0.5, at(days[0], 0), 2)
    await db.execute(INSERT, "ada", "server", "small", USAGE, None, at(days[1]), 1)
    await db.execute(INSERT, "bob", None, "big", OLD_USAGE, 0.25, at(days[1], 0), 1)
    await db.execute(INSERT, "bob", "=cmd()", "big", USAGE, 1.0, at(days[2]), 1)


async def usage(gateway: Gateway, query: str = "", **options: Any) -> Any:
    reply = await gateway.get(f"/api/v1/usage?{query}", **options)
    assert reply.status == 200, reply.body
    return reply.body


async def test_step_and_turn_tell_tokens_times_speed_and_cost(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat_stream("What is 23*19?")
    steps, (end,) = reply.of("step.completed"), reply.of("turn.completed")
    assert len(steps) == 2
    for told in (*steps, end):
        tokens = told["usage"]
        fresh = tokens["prompt_tokens"] - tokens["cached_tokens"]
        micro = fresh * 0.15 + tokens["cached_tokens"] * 0.075 + tokens["completion_tokens"] * 0.60
        assert told["cost_usd"] == pytest.approx(micro / 1e6, abs=1e-8)
        assert told["tokens_per_second"] == pytest.approx(500, rel=0.01)  # as the simulator says
        assert tokens["queue_time"] > 0
        assert tokens["model_time"] > tokens["generation_time"] > 0
        assert tokens["reasoning_tokens"] > 0
    for name, value in end["usage"].items():
        assert value == pytest.approx(sum(step["usage"][name] for step in steps))
    kept = (await gateway.get(f"/api/v1/turns/{reply.headers['x-turn-id']}")).body
    assert (kept["usage"], kept["cost_usd"]) == (end["usage"], end["cost_usd"])
    report = (await gateway.chat("What is 2*3?")).body["usage"]
    assert report["tokens_per_second"] == pytest.approx(500, rel=0.01)
    table = await usage(gateway)
    (row,) = table["rows"]
    assert row == {"day": TODAY.isoformat()} | table["total"]
    assert row["turns"] == 2
    assert row["prompt_tokens"] == end["usage"]["prompt_tokens"] + report["prompt_tokens"]
    assert row["cost_usd"] == pytest.approx(await db.fetchval("SELECT sum(cost_usd) FROM turns"))


async def test_turn_that_fails_in_its_second_step_has_paid_for_the_first(gateway: Gateway) -> None:
    waiting = (await gateway.chat("What is 23*19?", approval="always")).body
    gateway.simulator.faults.add(Fault(kind="status", status=400, body={"error": {"message": "no", "code": "x"}}))
    answer = {"input_id": waiting["inputs"][0]["input_id"], "action": "accept"}
    await gateway.post(f"/api/v1/turns/{waiting['turn_id']}/input", answer)
    path = f"{gateway.base_url}/api/v1/turns/{waiting['turn_id']}/events"
    async with gateway.session.get(path) as response:
        events = [event async for event in Stream(response).events()]
    (step,) = [event.data for event in events if event.type == "step.completed"]
    assert events[-2].type == "turn.failed"
    row = (await usage(gateway))["total"]
    assert (row["turns"], row["cost_usd"], row["unpriced_turns"]) == (1, step["cost_usd"], 0)
    assert row["prompt_tokens"] == step["usage"]["prompt_tokens"] > 0


@pytest.mark.usefixtures("used")
async def test_default_is_the_last_thirty_days_by_day(gateway: Gateway) -> None:
    table = await usage(gateway)
    assert [row["day"] for row in table["rows"]] == [str(TODAY - timedelta(days=1)), str(TODAY)]
    assert (table["from"], table["to"]) == tuple(
        at(TODAY + timedelta(days=n), 0).isoformat().replace("+00:00", "Z") for n in (-29, 1)
    )
    assert table["total"] == {
        "turns": 4, "steps": 8, "prompt_tokens": 400, "cached_tokens": 75, "cached_share": 0.1875,
        "completion_tokens": 40, "reasoning_tokens": 12, "total_tokens": 440, "queue_time": 1.5, "model_time": 1.0,
        "generation_time": 0.375, "tokens_per_second": 80.0, "cost_usd": 1.25, "unpriced_turns": 1, "cached_turns": 0,
    }  # fmt: skip
    assert table["truncated"] is False


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    ("query", "groups"),
    [
        ("group_by=user", [("ada", 3), ("bob", 1)]),
        ("group_by=model", [("big", 3), ("small", 1)]),
        ("group_by=key", [("laptop", 2), ("server", 1), (None, 1)]),
        ("group_by=user,model", [("ada", "big", 2), ("ada", "small", 1), ("bob", "big", 1)]),
        ("group_by=model&user=bob", [("big", 1)]),
        ("group_by=model&user=nobody", []),
        (f"group_by=user&from={TODAY}", [("ada", 2)]),
        (f"group_by=user&to={TODAY - timedelta(days=1)}", [("ada", 1), ("bob", 1)]),
        (f"group_by=user&from={TODAY - timedelta(days=1)}T06:00&to={TODAY}T00:00Z", [("ada", 1)]),
        (f"group_by=user&from={TODAY - timedelta(days=100)}", [("ada", 3), ("bob", 2)]),
        ("group_by=conversation", [(None, 4)]),
    ],
)
async def test_turns_are_grouped_and_chosen(gateway: Gateway, query: str, groups: list[Any]) -> None:
    table = await usage(gateway, query)
    names = table["group_by"]
    assert [(*(row[name] for name in names), row["turns"]) for row in table["rows"]] == groups
    assert table["total"]["turns"] == sum(group[-1] for group in groups)
    assert all(set(row) == {*names, *table["total"]} for row in table["rows"])


async def test_conversations_and_keys_of_real_turns_are_told_apart(gateway: Gateway) -> None:
    first = (await gateway.chat("Hello", conversation_id="new")).body
    await gateway.chat("Hello again", conversation_id=first["conversation_id"])
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    await gateway.post("/api/v1/chat", chat, **caller("ada", key="laptop"))
    await gateway.post("/api/v1/chat", chat | {"store": False}, **caller("ada", key="laptop"))
    rows = (await usage(gateway, "group_by=user,key,conversation"))["rows"]
    assert [(row["user"], row["key"], row["conversation"], row["turns"]) for row in rows] == [
        ("ada", "laptop", None, 2),
        ("local", None, first["conversation_id"], 2),
    ]


@pytest.mark.usefixtures("used")
async def test_users_see_their_own_alone(gateway: Gateway) -> None:
    for role in ("user", "viewer"):
        as_ada = caller("ada", role)
        assert [row["user"] for row in (await usage(gateway, "group_by=user", **as_ada))["rows"]] == ["ada"]
        assert (await usage(gateway, "user=ada", **as_ada))["total"]["turns"] == 3
        refused = await gateway.get("/api/v1/usage?user=bob", **as_ada)
        assert (refused.status, refused.body["error"]["code"]) == (403, "forbidden")
    assert (await usage(gateway, "user=bob", **caller("root", "admin")))["total"]["turns"] == 1


@pytest.mark.usefixtures("used")
async def test_csv_on_request(gateway: Gateway) -> None:
    path = f"/api/v1/usage?group_by=user,key&from={TODAY - timedelta(days=100)}"
    for query, headers in (("&format=csv", {}), ("", {"Accept": "text/csv"})):
        async with gateway.session.get(f"{gateway.base_url}{path}{query}", headers=headers) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/csv; charset=utf-8"
            assert 'filename="usage-20' in response.headers["content-disposition"]
            lines = list(csv.DictReader(io.StringIO(await response.text())))
        assert [(line["user"], line["key"], line["turns"], line["cost_usd"]) for line in lines] == [
            ("ada", "laptop", "2", "1.0"), ("ada", "server", "1", "0.0"), ("bob", "'=cmd()", "1", "1.0"),
            ("bob", "", "1", "0.25"),
        ]  # fmt: skip
    async with gateway.session.get(f"{gateway.base_url}{path}&format=json", headers={"Accept": "text/csv"}) as response:
        assert response.content_type == "application/json"


@pytest.mark.parametrize(
    "query",
    [
        "group_by=colour",
        "group_by=",
        "group_by=day,colour",
        "from=yesterday",
        "to=2026-13-01",
        "from=2026-01-02&to=2026-01-01",
        "from=2020-01-01&to=2026-01-01",
        "to=9999-12-31",
        "to=0001-01-01",
        "format=xml",
    ],
)
async def test_bad_query_is_a_422(gateway: Gateway, query: str) -> None:
    assert (await gateway.get(f"/api/v1/usage?{query}")).status == 422


async def test_many_groups_are_cut_and_many_turns_do_not_take_forever(
    gateway: Gateway, database_url: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in ("ada", "bob"):
        await db.execute(INSERT, owner, "laptop", "big", USAGE, 0.5, at(TODAY, 0), 20_000)
    await db.execute("UPDATE turns SET completed_at = completed_at - interval '90 days' WHERE owner = 'bob'")
    await db.execute("UPDATE turns SET key = 'key ' || (random() * 9)::int WHERE owner = 'ada'")
    await db.execute("VACUUM ANALYZE turns")
    monkeypatch.setattr("gateway.store.usage_report.MOST_GROUPS", 2)
    monkeypatch.setattr("gateway.api.usage_report.MOST_GROUPS", 2)
    begun = time.monotonic()
    table = await usage(gateway, "group_by=day,user,key")
    assert time.monotonic() - begun < 5
    assert (len(table["rows"]), table["truncated"], table["total"]["turns"]) == (2, True, 20_000)
    database = Database(database_url)
    since, until = at(TODAY, 0), at(TODAY + timedelta(days=1), 0)
    try:
        with pytest.raises(Overloaded, match="shorter range"):
            await UsageReports(database, seconds=0.001).added_up(["day"], since, until)
        async with database.engine.connect() as connection:
            for whose, index in (("", "ix_turns_completed"), ("AND owner = 'ada'", "ix_turns_owner_completed")):
                query = f"SELECT sum(steps) FROM turns WHERE completed_at >= :since AND completed_at < :until {whose}"
                plan = await connection.execute(text(f"EXPLAIN {query}"), {"since": at(TODAY, 1), "until": until})
                assert index in "\n".join(row[0] for row in plan)
    finally:
        await database.close()
