"""Forks and replays of workers that are killed in a call."""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.e2e.cluster import Cluster
from tests.e2e.test_workers import read_events
from tests.eventually import eventually
from tests.notes_server import NotesServer
from tests.stack import serve_asgi

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "4"}
THREE_STEPS = 'call note {"text": "one"} then look {"place": "attic"} then note {"text": "three"}'
BRANCHES: dict[str, dict[str, Any]] = {
    "fork": {"after_step": 2, "message": 'call note {"text": "own"} then note {"text": "held"}'},
    "replay": {
        "message": 'call note {"text": "one"} then look {"place": "attic"} then note {"text": "held"}',
        "on_new_call": "run",
    },
}


@pytest.fixture
def notes() -> NotesServer:
    return NotesServer()


@pytest.fixture
async def branch_cluster(database_url: str, simulator: Simulator, notes: NotesServer) -> AsyncGenerator[Cluster]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        serve_asgi(notes.mcp.streamable_http_app()) as url,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        yield Cluster(database_url, simulator.base_url, f"{url}/mcp", session)


@pytest.mark.parametrize("action", BRANCHES)
async def test_worker_is_killed_in_a_call_of_a_branch_and_no_call_runs_twice(
    branch_cluster: Cluster, notes: NotesServer, db: asyncpg.Connection, action: str
) -> None:
    async def is_held() -> bool:
        return ("note", "held") in notes.calls

    async with branch_cluster.run_worker(**LEASE) as first, branch_cluster.run_worker(**LEASE) as second:
        origin = (await first.chat(THREE_STEPS, conversation_id="new")).body
        assert [call["outcome"] for call in origin["tool_calls"]] == ["ok"] * 3, origin
        notes.held_text = "held"
        body = BRANCHES[action] | {"stream": True, "on_disconnect": "continue"}
        url = f"{first.base_url}/api/v1/turns/{origin['turn_id']}/{action}"
        async with first.session.post(url, json=body) as reply:
            branch_id = reply.headers["x-turn-id"]
            await eventually(is_held)
            first.kill()
        events = await read_events(second, branch_id)
        compared = await second.get(f"/api/v1/turns/{origin['turn_id']}/compare/{branch_id}")
    assert events[-2].type == "turn.completed", events[-2]
    results = [(event.data.get("source"), event.data["outcome"]) for event in events if event.type == "tool.result"]
    own = [(None, "ok")] if action == "fork" else []
    assert results == [("recorded", "ok"), ("recorded", "ok"), *own, (None, "unknown")]
    assert compared.status == 200
    expected = {("note", "one"): 1, ("look", "attic"): 1, ("note", "three"): 1, ("note", "held"): 1}
    assert Counter(notes.calls) == expected | ({("note", "own"): 1} if action == "fork" else {})
    stored = await db.fetch("SELECT status, parent_id, origin_id::text FROM turns WHERE id = $1::uuid", branch_id)
    assert [tuple(row) for row in stored] == [("completed", None, origin["turn_id"])]
