"""Tools that servers run as tasks, and turns that wait for them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.gateway.api.test_questions import get_only_event, read_to_end, send_answer
from tests.gateway.mcp_client.raw_server import serve_raw
from tests.gateway.mcp_client.task_server import TaskServer
from tests.stack import Gateway

pytestmark = pytest.mark.faults
ERAS = pytest.mark.parametrize("modern", [False, True], ids=["2025-11-25", "2026-07-28"])


@asynccontextmanager
async def serve_tasks(
    database_url: str, simulator: Simulator, tmp_path: Path, server: TaskServer, **settings: Any
) -> AsyncGenerator[Gateway]:
    calls = [{"name": "raw_build", "arguments": "{}"}]
    simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls, match="Build it"))
    async with serve_raw(
        database_url, simulator, tmp_path, {"raw": (server, {})}, heartbeat_seconds=0.5, **settings
    ) as gateway:
        yield gateway


async def wait_until_suspended(gateway: Gateway, server: TaskServer, db: asyncpg.Connection) -> str:
    """Wait until the only turn waits for its task; return its id."""
    await eventually(lambda: len(server.tasks) == 1)
    await eventually(lambda: not gateway.state.turn_service.running_turns)
    assert await db.fetchval("SELECT waits_for_task FROM turns")
    return str(await db.fetchval("SELECT id FROM turns"))


@ERAS
async def test_turn_waits_for_a_task_as_rows_alone(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)
        polls = server.count("tasks/get")
        await eventually(lambda: server.count("tasks/get") > polls + 1)
        row = await db.fetchrow("SELECT status, worker_id, waits_for_task FROM turns")
        assert row is not None
        assert tuple(row) == ("running", None, True)
        server.finish("built")
        events = await read_to_end(gateway, turn_id)
        assert (await answer).body["finish_reason"] == "stop"
    result = get_only_event(events, "tool.result")
    assert (result["outcome"], result["content"][0]["text"]) == ("ok", "built")
    get_only_event(events, "turn.completed")
    assert server.count("tools/call") == 1
    assert [event.id for event in events[:-1]] == list(range(1, len(events)))


@ERAS
async def test_stream_stays_open_while_its_turn_waits(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        stream = asyncio.create_task(gateway.chat_stream("Build it"))
        await wait_until_suspended(gateway, server, db)
        server.finish("built")
        reply = await stream
    progress = get_only_event(reply.events, "tool.progress")
    assert "as a task. building" in progress["message"]
    assert reply.events[-1].data == "[DONE]"
    get_only_event(reply.events, "turn.completed")


async def test_question_of_a_task_is_a_question_of_its_turn(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection
) -> None:
    server = TaskServer(modern=True)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        stream = asyncio.create_task(gateway.chat_stream("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)
        server.ask("Which color?")
        question = get_only_event((await stream).events, "input.required")
        assert (question["kind"], question["message"]) == ("question", "Which color?")
        reply = await send_answer(gateway, turn_id, question["input_id"], "accept", {"color": "red"})
        assert reply.status == 200
        await eventually(lambda: server.answers_of_tasks)
        server.finish("built red")
        events = await read_to_end(gateway, turn_id)
    assert server.answers_of_tasks == [{"color": {"action": "accept", "content": {"color": "red"}}}]
    assert get_only_event(events, "tool.result")["content"][0]["text"] == "built red"
    assert server.count("tools/call") == 1


@ERAS
async def test_cancelled_turn_cancels_its_task(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)
        await gateway.post(f"/api/v1/turns/{turn_id}/cancel", {})
        await eventually(lambda: server.tasks[0]["status"] == "cancelled")
        await answer
        await eventually(lambda: _is_settled(db))
    assert await db.fetchval("SELECT status FROM turns") == "cancelled"


async def _is_settled(db: asyncpg.Connection) -> bool:
    return bool(await db.fetchval("SELECT settled_at IS NOT NULL FROM tool_tasks"))


@ERAS
async def test_failed_task_is_an_error_of_its_call(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        await wait_until_suspended(gateway, server, db)
        server.fail(-32603, "No bricks left")
        await answer
    outcome, content = await db.fetchrow("SELECT outcome, content::text FROM tool_calls") or ("", "")
    assert outcome == "error"
    assert "No bricks left" in content


@ERAS
async def test_forgotten_task_leaves_the_outcome_unknown(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        await wait_until_suspended(gateway, server, db)
        server.tasks.clear()
        await answer
    assert await db.fetchval("SELECT outcome FROM tool_calls") == "unknown"
    assert server.count("tools/call") == 1


@ERAS
async def test_task_that_takes_too_long_is_cancelled(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server, tool_task_timeout=1.0) as gateway:
        await gateway.chat("Build it")
    outcome, content = await db.fetchrow("SELECT outcome, content::text FROM tool_calls") or ("", "")
    assert outcome == "unknown"
    assert "took too long" in content
    assert server.tasks[0]["status"] == "cancelled"


@ERAS
async def test_turn_waits_on_while_the_server_is_away_and_after_a_restart(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)
        answer.cancel()
    server.finish("built meanwhile")
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway:
        events = await read_to_end(gateway, turn_id)
    assert get_only_event(events, "tool.result")["content"][0]["text"] == "built meanwhile"
    assert server.count("tools/call") == 1


@ERAS
async def test_direct_call_waits_for_its_task(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        call = asyncio.create_task(gateway.post("/api/v1/tools/raw_build", {}))
        await eventually(lambda: server.count("tasks/get") > 1)
        server.finish("built")
        assert (await call).body["content"][0]["text"] == "built"


@ERAS
async def test_direct_call_that_takes_too_long_cancels_its_task(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server, limits = TaskServer(modern=modern), {"tool_timeout": 1.0, "tool_progress_timeout": 1.0}
    async with serve_tasks(database_url, simulator, tmp_path, server, **limits) as gateway:
        reply = await gateway.post("/api/v1/tools/raw_build", {})
        assert "task was cancelled" in str(reply.body)
        await eventually(lambda: server.tasks[0]["status"] == "cancelled")


@ERAS
async def test_odd_task_is_an_error_of_its_call_alone(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    server.oddities = {"taskId": "x" * 10_000}
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        assert (await gateway.chat("Build it")).body["finish_reason"] == "stop"
    assert await db.fetchval("SELECT outcome FROM tool_calls") == "error"
    assert await db.fetchval("SELECT count(*) FROM tool_tasks") == 0


SECONDS_TO_POLL = "SELECT extract(epoch FROM due_at - now())::float8 FROM tool_tasks"
AGED = """UPDATE tool_tasks SET due_at = now(),
task = jsonb_set(task, '{started_at}', to_jsonb((task->>'started_at')::float8 - 2000))"""


@ERAS
async def test_server_whose_tasks_never_settle_wakes_turns_ever_more_rarely(
    database_url: str, simulator: Simulator, tmp_path: Path, db: asyncpg.Connection, modern: bool
) -> None:
    """The status goes back whenever a worker goes on with the turn."""
    server = TaskServer(modern=modern, poll_ms=0)
    get_state: Any = server.answers["tasks/get"]
    async with serve_tasks(database_url, simulator, tmp_path, server) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)

        def flip(params: dict[str, Any], request: Any) -> Any:
            status = "working" if gateway.state.turn_service.running_turns else "completed"
            return {**get_state(params, request), "status": status}

        server.answers["tasks/get"] = flip
        await db.execute(AGED)
        await eventually(lambda: db.fetchval("SELECT count(*) > 1 FROM tool_tasks"))
        assert await db.fetchval(f"{SECONDS_TO_POLL} ORDER BY id DESC LIMIT 1") == pytest.approx(20, abs=5)
        await gateway.post(f"/api/v1/turns/{turn_id}/cancel", {})
        await answer
        await eventually(lambda: server.tasks[0]["status"] == "cancelled")


ODD_LIMITS = [("ttl", 0), ("ttl", -5), ("ttl", 1e300), ("interval", -1), ("interval", 1e300)]


@ERAS
@pytest.mark.parametrize(("member", "value"), ODD_LIMITS)
async def test_odd_limits_of_a_task_are_bounded(
    database_url: str,
    simulator: Simulator,
    tmp_path: Path,
    db: asyncpg.Connection,
    modern: bool,
    member: str,
    value: Any,
) -> None:
    names = {"ttl": ("ttl", "ttlMs"), "interval": ("pollInterval", "pollIntervalMs")}
    server = TaskServer(modern=modern)
    server.oddities = {names[member][modern]: value}
    async with serve_tasks(database_url, simulator, tmp_path, server, tool_task_timeout=1_000.0) as gateway:
        answer = asyncio.create_task(gateway.chat("Build it"))
        turn_id = await wait_until_suspended(gateway, server, db)
        task = json.loads(await db.fetchval("SELECT task::text FROM tool_tasks"))
        assert 0 < task["deadline"] - task["started_at"] <= 1_000
        assert 0.2 <= task["poll_seconds"] <= 60
        await gateway.post(f"/api/v1/turns/{turn_id}/cancel", {})
        await answer
