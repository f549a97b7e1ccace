"""Chat failures: model errors, timeouts, disconnects, shutdown, an unavailable database."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.common.concurrency import wait_for_result
from gateway.domain.messages import JsonObject
from gateway.simulator import Fault, Simulator, SimulatorSettings, serve_simulator
from gateway.store.journal import postgres_journal
from tests.eventually import eventually
from tests.gateway.api.test_chat import get_turn_row
from tests.stack import TIMEOUTS, Gateway, serve_gateway

SHORT_JOURNAL_TIMEOUT = replace(TIMEOUTS, journal=0.3)


async def wait_for_ended_turn(db: asyncpg.Connection, turn_id: str) -> Any:
    """Poll for the row of an ended turn.

    Commits of other connections send no event to this process.
    """

    async def get_ended_row() -> Any:
        row = await get_turn_row(db, turn_id)
        return row if row["status"] != "running" else None

    return await eventually(get_ended_row)


def write_calls(count: int) -> str:
    """Write calls into a model's text."""
    calls = ", ".join(f'{{"name": "add_task", "arguments": {{"title": "task {n}"}}}}' for n in range(count))
    return f"<TOOL_CALLS>[{calls}]</TOOL_CALLS>"


def wrap_calls(count: int) -> JsonObject:
    """Wrap calls into OpenAI's call of several tools."""
    uses = [{"recipient_name": "functions.add_task", "parameters": {"title": f"task {n}"}} for n in range(count)]
    return {"name": "multi_tool_use.parallel", "arguments": {"tool_uses": uses}}


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("openai/gpt-oss-120b", Fault(kind="malformed_tool_call", failed_generation=write_calls(129))),
        ("openai/gpt-oss-120b", Fault(kind="malformed_tool_call", failed_generation=write_calls(129), after_chunks=2)),
        ("groq/compound", Fault(kind="text", text=write_calls(129))),
        ("groq/compound", Fault(kind="text", text=f"Done: {write_calls(129)}")),
        ("openai/gpt-oss-120b", Fault(kind="tool_calls", calls=[wrap_calls(129)])),
        ("openai/gpt-oss-120b", Fault(kind="tool_calls", calls=[wrap_calls(65), wrap_calls(64)])),
    ],
    ids=["rejected", "rejected-midway", "prompted", "prompted-after-text", "wrapped", "wrapped-twice"],
)
async def test_calls_written_as_text_count_toward_the_calls_of_an_answer(
    gateway: Gateway, db: asyncpg.Connection, model: str, fault: Fault
) -> None:
    gateway.simulator.faults.add_faults(fault)
    reply = await gateway.chat_stream("Add the tasks", model=model)
    turn_id = reply.headers["x-turn-id"]
    row = await wait_for_ended_turn(db, turn_id)
    assert (row["status"], json.loads(row["error"])["code"]) == ("failed", "model_answer_too_long")
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault(kind="status", status=401), 502, "model_key_refused"),
        (Fault(kind="status", status=403), 502, "model_key_refused"),
        (Fault(kind="status", status=429, headers={"retry-after": "70"}), 429, "model_rate_limited"),
        (Fault(kind="status", status=400), 400, "model_request_refused"),
        (Fault(kind="status", status=413), 400, "model_request_refused"),
        (Fault(kind="status", status=424), 400, "model_request_refused"),
        (Fault(kind="status", status=500, times=9), 503, "model_unavailable"),
        (Fault(kind="status", status=498, times=9), 503, "model_unavailable"),
        (Fault(kind="status", status=502, times=9, body="<html>bad gateway</html>"), 503, "model_unavailable"),
        (Fault(kind="malformed_tool_call", failed_generation="<function=x>", times=9), 502, "tool_call_unreadable"),
        (Fault(kind="cut", times=9), 502, "model_stream_broken"),
        (Fault(kind="abort", times=9), 502, "model_stream_broken"),
        (Fault(kind="garbage", times=9), 502, "model_stream_broken"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else str(value),
)
async def test_failure_before_the_first_token_sets_the_http_status(
    gateway: Gateway, db: asyncpg.Connection, fault: Fault, status: int, code: str
) -> None:
    gateway.simulator.faults.add_faults(fault)
    reply = await gateway.chat_stream("Hello there")
    assert (reply.status, reply.body["error"]["code"]) == (status, code)
    if status == 429:
        assert reply.headers["retry-after"] == "70"
    row = await wait_for_ended_turn(db, reply.headers["x-turn-id"])
    assert (row["status"], json.loads(row["error"])["code"]) == ("failed", code)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(kind="mid_stream_error", after_chunks=4), "model_stream_broken"),
        (Fault(kind="data_error", after_chunks=4), "model_stream_broken"),
        (Fault(kind="x_groq_error", after_chunks=4), "model_stream_broken"),
        (Fault(kind="cut", after_chunks=4), "model_stream_broken"),
        (Fault(kind="abort", after_chunks=4), "model_stream_broken"),
        (Fault(kind="garbage", after_chunks=4), "model_stream_broken"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else str(value),
)
async def test_failure_after_the_first_token_is_a_turn_failed_event(
    gateway: Gateway, db: asyncpg.Connection, fault: Fault, code: str
) -> None:
    gateway.simulator.faults.add_faults(fault)
    reply = await gateway.chat_stream("count to 50", reasoning_effort="none", model="qwen/qwen3.8-27b")
    assert reply.status == 200
    failed = reply.get_event_data("turn.failed")[0]
    assert (failed["error"]["code"], failed["saved"]) == (code, "text")
    assert reply.is_done
    row = await get_turn_row(db, reply.headers["x-turn-id"])
    assert (row["status"], row["response"]) == ("failed", reply.text)
    assert reply.text


async def test_transient_model_failure_is_retried_before_the_first_token(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=503))
    reply = await gateway.chat_stream("Hello there")
    assert reply.status == 200
    assert reply.get_event_data("model.retry") == [
        {"type": "model.retry", "step": 1, "reason": "model_unavailable", "attempt": 1, "discard": False, "model": None}
    ]
    assert reply.get_event_data("turn.completed")


async def test_unreadable_tool_call_is_retried_and_then_becomes_an_error_result(gateway: Gateway) -> None:
    for kind in ("unknown_tool", "invalid_json_arguments", "bad_arguments"):
        gateway.simulator.faults.add_faults(Fault(kind=kind))
        reply = await gateway.chat_stream("What is 1+1?")
        assert [(r["reason"], r["attempt"]) for r in reply.get_event_data("model.retry")] == [
            ("tool_call_unreadable", 1)
        ], kind
        assert [r["outcome"] for r in reply.get_event_data("tool.result")] == ["ok"], kind
        gateway.simulator.faults.add_faults(Fault(kind=kind, times=3))
        reply = await gateway.chat_stream("What is 1+1?")
        assert [r["attempt"] for r in reply.get_event_data("model.retry")] == [1, 2], kind
        assert reply.get_event_data("tool.result")[0]["outcome"] == "error", kind
        assert reply.get_event_data("turn.completed"), kind


async def test_turn_timeout_is_a_504_and_cancels_the_model_call(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="slow_first_token"))
    async with serve_gateway(database_url, simulator, tools_url, agent_timeout=2) as gateway:
        reply = await gateway.chat("Hello")
        assert (reply.status, reply.body["error"]["code"]) == (504, "turn_timeout")
        await simulator.wait_until(lambda s: s.cancelled_streams == 1)


@pytest.mark.faults
async def test_idle_model_stream_times_out(database_url: str, simulator: Simulator, tools_url: str) -> None:
    simulator.faults.add_faults(Fault(kind="stall", after_chunks=5, times=99))
    async with serve_gateway(database_url, simulator, tools_url, model_idle_timeout=1) as gateway:
        reply = await gateway.chat_stream("count to 50")
    assert reply.get_event_data("turn.failed")[0]["error"]["code"] == "model_stream_broken"


async def test_answer_with_a_finish_reason_ends_without_done(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="no_done"))
    async with serve_gateway(database_url, simulator, tools_url, model_idle_timeout=3600, agent_timeout=30) as gateway:
        reply = await gateway.chat_stream("Hello there")
    assert reply.get_event_data("turn.completed")[0]["usage"]["total_tokens"] > 0


async def test_endless_answer_ends_the_turn_when_it_is_too_long(
    gateway: Gateway, simulator: Simulator, db: asyncpg.Connection
) -> None:
    simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0))
    reply = await gateway.chat_stream("count to 50")
    assert reply.get_event_data("turn.failed")[0]["error"]["code"] == "model_answer_too_long"
    assert len(reply.text) <= 2_000_000
    row = await get_turn_row(db, reply.headers["x-turn-id"])
    assert (row["status"], row["response"]) == ("failed", reply.text)
    await simulator.wait_until(lambda s: s.open_streams == 0)


async def test_turn_with_too_many_bytes_of_events_fails(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0))
    async with serve_gateway(database_url, simulator, tools_url, turn_max_bytes=100_000) as gateway:
        reply = await gateway.chat_stream("count to 50")
    assert reply.get_event_data("turn.failed")[0]["error"]["code"] == "turn_too_large"
    assert sum(len(json.dumps(event.data)) for event in reply.events) < 1_000_000


@pytest.mark.faults
async def test_deadline_ends_a_turn_whose_answer_never_pauses(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.05))
    async with serve_gateway(database_url, simulator, tools_url, agent_timeout=4) as gateway:
        reply = await gateway.chat_stream("count to 50")
    assert reply.get_event_data("turn.failed")[0]["error"]["code"] == "turn_timeout"
    await simulator.wait_until(lambda s: s.open_streams == 0)


async def test_client_disconnect_cancels_the_model_call_and_stores_the_partial_text(
    database_url: str, tools_url: str, db: asyncpg.Connection
) -> None:
    async with (
        serve_simulator(SimulatorSettings(tokens_per_second=200, first_token_delay=0)) as simulator,
        serve_gateway(database_url, simulator, tools_url) as gateway,
    ):
        async with gateway.stream("count to 5000") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            await stream.read_until("text.delta")
            stream.response.close()
        await simulator.wait_until(lambda s: s.cancelled_streams == 1)
        row = await wait_for_ended_turn(db, turn_id)
    assert (row["status"], json.loads(row["error"])["code"]) == ("cancelled", "client_disconnected")
    assert row["response"].startswith("1")
    assert len(row["response"]) < 1000


async def test_client_disconnect_before_the_first_token_cancels_the_turn(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    simulator.faults.add_faults(Fault(kind="slow_first_token"))
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        for path in ("/api/v1/chat", "/api/v1/chat/stream"):
            body = {"messages": [{"role": "user", "content": "Hello"}]}
            request = asyncio.create_task(gateway.session.post(f"{gateway.base_url}{path}", json=body))
            before = simulator.cancelled_streams
            await simulator.wait_until(lambda s: s.open_streams == 1)
            request.cancel()
            await simulator.wait_until(lambda s, before=before: s.cancelled_streams == before + 1)  # type: ignore[misc]
            simulator.faults.add_faults(Fault(kind="slow_first_token"))
        await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM turns WHERE status = 'cancelled'"))


async def test_turn_with_on_disconnect_continue_completes_after_a_disconnect(
    database_url: str, tools_url: str, db: asyncpg.Connection
) -> None:
    async with (
        serve_simulator(SimulatorSettings(tokens_per_second=2000, first_token_delay=0)) as simulator,
        serve_gateway(database_url, simulator, tools_url) as gateway,
    ):
        async with gateway.stream("count to 300", on_disconnect="continue") as stream:
            turn_id = stream.response.headers["x-turn-id"]
            await stream.read_until("text.delta")
            stream.response.close()
        row = await wait_for_ended_turn(db, turn_id)
    assert row["status"] == "completed"
    assert row["response"].endswith("299 300 (simulated)")


async def test_shutdown_ends_streams_with_stream_closing_and_releases_the_turn(
    database_url: str, tools_url: str, db: asyncpg.Connection
) -> None:
    async with (
        serve_simulator(SimulatorSettings(tokens_per_second=200, first_token_delay=0)) as simulator,
        serve_gateway(database_url, simulator, tools_url) as gateway,
        gateway.stream("count to 5000") as stream,
    ):
        await stream.read_until("text.delta")
        stopping = asyncio.create_task(gateway.state.stop(0))
        closing = await stream.read_until("stream.closing")
        assert closing.id is None
        assert closing.data["reason"] == "server_stopping"
        assert not [event async for event in stream.read_events()]
        await stopping
        await simulator.wait_until(lambda s: s.cancelled_streams == 1)
        row = await get_turn_row(db, stream.response.headers["x-turn-id"])
        assert (row["status"], row["worker_id"]) == ("running", None)
        rejection = await gateway.chat_stream("Hello")
        assert (rejection.status, rejection.body["error"]["code"]) == (503, "server_stopping")
        assert (await gateway.get("/ready")).status == 503


async def test_short_turn_completes_within_the_shutdown_grace_period(database_url: str, tools_url: str) -> None:
    async with (
        serve_simulator(SimulatorSettings(tokens_per_second=500, first_token_delay=0)) as simulator,
        serve_gateway(database_url, simulator, tools_url) as gateway,
        gateway.stream("count to 100") as stream,
    ):
        await stream.read_until("text.delta")
        await gateway.state.stop(30)
        await stream.read_until("turn.completed")


async def test_unreachable_database_at_startup_is_a_503_and_fails_readiness(
    simulator: Simulator, tools_url: str
) -> None:
    unreachable_url = "postgresql+asyncpg://user@127.0.0.1:9/none"
    async with serve_gateway(unreachable_url, simulator, tools_url, timeouts=SHORT_JOURNAL_TIMEOUT) as gateway:
        reply = await gateway.chat("Hello")
        assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")
        ready = await gateway.get("/ready")
        assert ready.status == 503
        # Whether there are keys is unknown, so the caller may not see reasons.
        assert (ready.body["database"], ready.body["mcp_servers"]) == ({"ok": False, "reason": None}, [])
        assert (await gateway.get("/health")).status == 200


@pytest.fixture
async def is_too_late(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Once set, the journal waits no longer for a turn's begin."""
    event = asyncio.Event()

    async def wait_until_set(future: asyncio.Future[None], _seconds: float) -> None:
        await event.wait()
        await wait_for_result(future, 0)

    monkeypatch.setattr(postgres_journal, "wait_for_result", wait_until_set)
    return event


async def test_model_call_is_cancelled_when_the_turn_cannot_be_stored(
    gateway: Gateway, simulator: Simulator, db: asyncpg.Connection, is_too_late: asyncio.Event
) -> None:
    simulator.faults.add_faults(Fault(kind="slow_first_token"))
    async with db.transaction():
        await db.execute("LOCK TABLE turns IN SHARE MODE")
        request = asyncio.create_task(gateway.chat("Hello"))
        await simulator.wait_until(lambda s: s.open_streams == 1)
        is_too_late.set()
        reply = await request
        await simulator.wait_until(lambda s: s.cancelled_streams == 1)
    assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")
    assert gateway.state.turn_service.running_turns == 0


@pytest.mark.parametrize("hand_over", [False, True])
async def test_turn_that_ends_before_its_insert_commits_is_stored_as_failed(
    gateway: Gateway, simulator: Simulator, db: asyncpg.Connection, is_too_late: asyncio.Event, hand_over: bool
) -> None:
    async with asyncio.TaskGroup() as tasks, db.transaction():
        await db.execute("LOCK TABLE turns IN SHARE MODE")
        request = tasks.create_task(gateway.chat("Hello"))
        await simulator.wait_until(lambda s: len(s.requests) == 1)
        runner = gateway.state.turn_service._runner
        if hand_over:
            tasks.create_task(runner.hand_over("server_stopping"))
        else:
            await eventually(lambda: [turn.stage for turn in runner._turns.values()] == ["finishing"])
        is_too_late.set()
        reply = await request
    assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")
    row = await eventually(lambda: db.fetchrow("SELECT status, response FROM turns WHERE status <> 'running'"))
    assert tuple(row) == ("failed", "")
    assert await db.fetchval("SELECT array_agg(status) FROM turn_usage") == ["failed"]
    assert "turn.completed" not in await db.fetchval("SELECT string_agg(payload, '') FROM turn_events")


async def test_gateway_serves_while_the_tool_server_is_down(database_url: str, simulator: Simulator) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        reply = await gateway.chat("Hello")
        assert reply.status == 200
        ready = await gateway.get("/ready")
        assert (ready.status, ready.body["status"]) == (200, "degraded")
        assert ready.body["mcp_servers"][0]["state"] == "down"
