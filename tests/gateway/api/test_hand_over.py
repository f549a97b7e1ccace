"""Responses to waiting requests when a worker hands their turn over."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import StorageUnavailable
from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, Reply

PROMPT = "count to 200"
MESSAGES = [{"role": "user", "content": PROMPT}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/api/v1/chat", {"messages": MESSAGES}),
    "chat completions": ("/v1/chat/completions", {"messages": MESSAGES}),
    "responses": ("/v1/responses", {"input": PROMPT}),
    "legacy": ("/api/ada/chat", {"message": PROMPT}),
}


def get_answer_text(body: Any) -> str:
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    if "output" in body:
        return "".join(p["text"] for item in body["output"] if item["type"] == "message" for p in item["content"])
    return str(body["response"])


async def miss_heartbeats(gateway: Gateway) -> list[UUID]:
    """Give up all stored turns, as a worker does after missed heartbeats.

    Other workers can claim them at once.
    """
    runner = gateway.state.turn_service._runner
    turn_ids = [turn.id for turn in runner._turns.values() if turn.is_stored]
    gateway.state.lease.end()
    await eventually(lambda: all(runner.get(turn_id) is None for turn_id in turn_ids))
    await runner._storage.workers.release_turns(turn_ids)
    for turn_id in turn_ids:
        gateway.state.bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn_id))
    return turn_ids


async def start_request(
    gateway: Gateway, simulator: Simulator, path: str, body: Any, **options: Any
) -> asyncio.Task[Reply]:
    """Start a request, and return it once the model streams its answer."""
    request = asyncio.create_task(gateway.post(path, body, **options))
    await simulator.wait_until(lambda s: s.open_streams == 1)
    return request


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_waiting_request_continues_after_missed_heartbeats(
    workers: list[Gateway], slow_simulator: Simulator, db: asyncpg.Connection, path: str, body: Any
) -> None:
    request = await start_request(workers[0], slow_simulator, path, body)
    assert len(await miss_heartbeats(workers[0])) == 1
    async with asyncio.timeout(30):
        reply = await request
    assert reply.status == 200
    assert get_answer_text(reply.body) == await db.fetchval("SELECT response FROM turns")
    assert get_answer_text(reply.body).endswith("199 200 (simulated)")


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_waiting_request_ends_with_503_when_its_worker_stops(
    workers: list[Gateway], slow_simulator: Simulator, path: str, body: Any
) -> None:
    request = await start_request(workers[0], slow_simulator, path, body)
    slow_simulator.pause_streams()
    await workers[0].state.stop(0)
    reply = await request
    assert reply.status == 503
    assert reply.body["error"]["code"] == "server_stopping"


async def test_waiting_request_returns_questions_asked_on_another_worker(
    workers: list[Gateway], slow_simulator: Simulator, db: asyncpg.Connection
) -> None:
    body = {"messages": [{"role": "user", "content": "Add a task to buy milk"}], "approval": "always"}
    request = await start_request(workers[0], slow_simulator, "/api/v1/chat", body)
    await miss_heartbeats(workers[0])
    async with asyncio.timeout(30):
        reply = await request
    assert (reply.status, reply.body["finish_reason"], len(reply.body["inputs"])) == (200, "input_required", 1)
    assert await db.fetchval("SELECT status FROM turns") == "waiting"


async def test_waiting_request_ends_when_the_database_stays_unavailable_after_a_hand_over(
    workers: list[Gateway], slow_simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_storage_unavailable(*_: Any) -> None:
        raise StorageUnavailable

    service = workers[0].state.turn_service
    request = await start_request(workers[0], slow_simulator, "/api/v1/chat", {"messages": MESSAGES})
    monkeypatch.setattr(service._subscriptions.reader, "_storage_timeout_seconds", 0.0)
    monkeypatch.setattr(workers[0].state.turns, "get_progress", raise_storage_unavailable)
    await miss_heartbeats(workers[0])
    reply = await request
    assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")


async def test_ephemeral_turn_ends_with_its_worker(workers: list[Gateway], slow_simulator: Simulator) -> None:
    request = await start_request(workers[0], slow_simulator, "/api/v1/chat", {"messages": MESSAGES, "store": False})
    slow_simulator.pause_streams()
    await workers[0].state.stop(0)
    reply = await request
    assert (reply.status, reply.body["error"]["code"]) == (503, "server_stopping")


async def test_ephemeral_turn_runs_on_after_missed_heartbeats(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    request = await start_request(workers[0], slow_simulator, "/api/v1/chat", {"messages": MESSAGES, "store": False})
    assert await miss_heartbeats(workers[0]) == []
    reply = await request
    assert (reply.status, get_answer_text(reply.body)[-19:]) == (200, "199 200 (simulated)")


async def test_repeated_request_is_a_410_after_the_journal_expired(gateway: Gateway, db: asyncpg.Connection) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    assert (await gateway.post("/api/v1/chat", body, headers=headers)).status == 200
    await db.execute("DELETE FROM turn_events")
    reply = await gateway.post("/api/v1/chat", body, headers=headers)
    assert (reply.status, reply.body["error"]["code"]) == (410, "journal_expired")


async def test_repeated_request_for_an_ephemeral_turn_is_a_409_on_another_worker(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    first_worker, second_worker = workers
    options = {"headers": {"Idempotency-Key": "k"}}
    request = await start_request(
        first_worker, slow_simulator, "/api/v1/chat", {"messages": MESSAGES, "store": False}, **options
    )
    reply = await second_worker.post("/api/v1/chat", {"messages": MESSAGES, "store": False}, **options)
    assert (reply.status, reply.body["error"]["code"]) == (409, "turn_not_kept")
    assert (await request).status == 200


async def test_ask_agent_call_survives_missed_heartbeats(workers: list[Gateway], slow_simulator: Simulator) -> None:
    async with connect_host(workers[0], "auto") as client:
        request = asyncio.create_task(client.call_tool("ask_agent", {"prompt": PROMPT}))
        await slow_simulator.wait_until(lambda s: s.open_streams == 1)
        await miss_heartbeats(workers[0])
        async with asyncio.timeout(30):
            result = await request
    assert not result.is_error
    assert get_text(result).endswith("199 200 (simulated)")


async def test_progress_of_an_ask_agent_call_increases_after_a_hand_over(
    workers: list[Gateway], slow_simulator: Simulator
) -> None:
    progress: list[float] = []

    async def record_progress(done: float, _total: float | None, _message: str | None) -> None:
        progress.append(done)

    def call_calculator() -> None:
        calls = [{"name": "calculator", "arguments": {"expression": "6*7"}}]
        slow_simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))

    call_calculator()
    async with connect_host(workers[0], "auto") as client:
        request = asyncio.create_task(
            client.call_tool("ask_agent", {"prompt": PROMPT}, progress_callback=record_progress)
        )
        await slow_simulator.wait_until(lambda s: len(s.requests) == 2 and s.open_streams == 1)
        call_calculator()  # in the step that the other worker repeats
        await miss_heartbeats(workers[0])
        async with asyncio.timeout(30):
            result = await request
    assert not result.is_error
    assert len(slow_simulator.requests) == 4
    assert progress == [1, 2]


async def test_ask_agent_call_reports_server_stopping(workers: list[Gateway], slow_simulator: Simulator) -> None:
    async with connect_host(workers[0], "auto") as client:
        request = asyncio.create_task(client.call_tool("ask_agent", {"prompt": PROMPT}))
        await slow_simulator.wait_until(lambda s: s.open_streams == 1)
        slow_simulator.pause_streams()
        await workers[0].state.turn_service.stop(0)
        result = await request
    assert result.is_error
    assert (result.meta or {})["mcp-agent-gateway/error"]["code"] == "server_stopping"
