"""Tests of calls with an idempotency key, which take effect once."""

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from mcp import Client
from mcp.types import ElicitResult

from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import acting_for
from tests.eventually import eventually
from tests.tools_server.conftest import ERAS, connect, run_tools_server, text_of
from tools_server.tasks.calls import DEDUPLICATES, KEY_META, LIFETIME_DAYS, cap_calls
from tools_server.tasks.store import TaskStore


async def call(client: Client, tool: str, key: object, user: str = "ann", **arguments: object) -> Any:
    meta: Any = {KEY_META: key}
    with acting_for(Principal(user)):
        return await client.call_tool(tool, arguments, meta=meta)


async def count_tasks(db: asyncpg.Connection) -> int:
    return await db.fetchval("SELECT count(*) FROM tools.tasks")


@pytest.mark.parametrize("era", ERAS)
async def test_tools_that_change_tasks_declare_that_they_deduplicate(tools: str, era: str) -> None:
    async with connect(tools, era) as client:
        declared = {tool.name for tool in (await client.list_tools()).tools if tool.meta == DEDUPLICATES}
    assert declared == {"add_task", "complete_task", "update_task", "delete_task"}


@pytest.mark.parametrize("era", ERAS)
async def test_repeated_call_returns_the_first_result(tools: str, era: str, db: asyncpg.Connection) -> None:
    async with connect(tools, era) as client:
        results = await asyncio.gather(*(call(client, "add_task", "k1", title="buy milk") for _ in range(20)))
        assert {text_of(result) for result in results} == {"Added task #1: buy milk"}
        assert len({str(result.structured_content) for result in results}) == 1
        assert text_of(await call(client, "add_task", "k2", title="buy milk")) == "Added task #2: buy milk"
        assert text_of(await call(client, "add_task", "k1", "bob", title="buy milk")) == "Added task #1: buy milk"
    assert await count_tasks(db) == 3


async def test_repeated_changes_return_the_task_as_it_was(tools: str) -> None:
    async with connect(tools, "auto") as client:
        await call(client, "add_task", "k1", title="buy milk")
        first = await call(client, "update_task", "k2", task_id=1, title="buy tea")
        await call(client, "update_task", "k3", task_id=1, title="buy coffee")
        assert (await call(client, "update_task", "k2", task_id=1, title="buy tea")) == first
        assert "buy coffee" in text_of(await call(client, "list_tasks", None))
        for _ in range(2):
            assert text_of(await call(client, "delete_task", "k4", task_id=1)) == "Deleted task #1: buy coffee"


async def test_repeated_deletion_by_title_needs_no_task_of_that_title(tools: str, db: asyncpg.Connection) -> None:
    asked: list[str] = []

    async def choose_second(_context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"task_id": 2})

    async with connect(tools, "auto", elicitation_callback=choose_second) as client:
        for key in ("k1", "k2", "k3"):
            await call(client, "add_task", key, title="buy milk")
        for _ in range(2):
            assert text_of(await call(client, "delete_task", "k4", title="milk")) == "Deleted task #2: buy milk"
        assert len(asked) == 1
        await call(client, "delete_task", "k5", task_id=1)
        for _ in range(2):
            assert text_of(await call(client, "delete_task", "k6", title="milk")) == "Deleted task #3: buy milk"
    assert await count_tasks(db) == 0


async def test_key_of_another_call_is_refused(tools: str, db: asyncpg.Connection) -> None:
    async with connect(tools, "auto") as client:
        await call(client, "add_task", "k1", title="buy milk")
        for tool, arguments in (("add_task", {"title": "buy tea"}), ("complete_task", {"task_id": 1})):
            refused = await call(client, tool, "k1", "ann", **arguments)
            assert refused.is_error
            assert "belongs to another call" in text_of(refused)
        refused = await call(client, "add_task", 5, title="buy tea")
        assert refused.is_error
        assert "must be a string" in text_of(refused)
        assert not (await call(client, "add_task", "\0" * 3_000, title="strange key")).is_error
    assert await count_tasks(db) == 2


async def test_failed_call_may_be_repeated(tools: str) -> None:
    async with connect(tools, "auto") as client:
        assert (await call(client, "complete_task", "k1", task_id=1)).is_error
        await call(client, "add_task", "k2", title="buy milk")
        assert text_of(await call(client, "complete_task", "k1", task_id=1)) == "Completed task #1: buy milk"


async def test_call_interrupted_by_the_death_of_the_server_takes_effect_once(
    database_url: str, db: asyncpg.Connection
) -> None:
    async with run_tools_server(DATABASE_URL=database_url) as server:
        await server.ready()
        async with db.transaction():
            await db.execute("LOCK TABLE tools.tasks IN ACCESS EXCLUSIVE MODE")

            async def add_task() -> None:
                async with connect(server.address, "auto") as client:
                    await call(client, "add_task", "k1", title="buy milk")

            adding = asyncio.create_task(add_task())
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: db.fetchval(waits))
            await server.end(signal.SIGKILL)
            await asyncio.wait([adding])
            assert adding.exception() is not None
    async with run_tools_server(DATABASE_URL=database_url) as server:
        await server.ready()
        async with connect(server.address, "auto") as client:
            for _ in range(2):
                assert text_of(await call(client, "add_task", "k1", title="buy milk")) == "Added task #1: buy milk"
    assert await count_tasks(db) == 1


async def test_keys_expire(tools: str, db: asyncpg.Connection) -> None:
    expired = datetime.now(UTC) - timedelta(days=LIFETIME_DAYS, minutes=1)
    async with connect(tools, "auto") as client:
        for key in ("k1", "k2", "k3"):
            await call(client, "add_task", key, title="buy milk")
        await db.execute("UPDATE tools.task_calls SET created_at = $1 WHERE result LIKE '%\"id\":1,%'", expired)
        await call(client, "add_task", "k4", title="buy milk")
        assert await db.fetchval("SELECT count(*) FROM tools.task_calls") == 3
        assert text_of(await call(client, "add_task", "k1", title="buy milk")) == "Added task #5: buy milk"


async def test_only_the_newest_keys_of_a_user_are_kept(database_url: str, db: asyncpg.Connection) -> None:
    store = TaskStore(database_url)
    insert = (
        "INSERT INTO tools.task_calls SELECT $1, 'k' || n, '', '{}', now() + n * interval '1 second'"
        " FROM generate_series(1, 50) n"
    )
    for user in ("ann", "bob"):
        await db.execute(insert, user)
    async with store._open_session() as session:
        await cap_calls(session, "ann", 10)
    await store.close()
    rows = await db.fetch("SELECT user_id, count(*), min(created_at) FROM tools.task_calls GROUP BY 1 ORDER BY 1")
    assert [(row["user_id"], row["count"]) for row in rows] == [("ann", 10), ("bob", 50)]
    assert await db.fetchval("SELECT count(*) FROM tools.task_calls WHERE user_id = 'ann' AND key = 'k50'") == 1
