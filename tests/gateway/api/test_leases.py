"""Workers that lose their lease, and turns that nobody can continue."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from gateway.store import migrations
from gateway_runtime.postgres.url import plain_dsn
from tests.conftest import count_lock_waits
from tests.effect_server import CALLS, make_payment_prompt, serve_effects
from tests.eventually import eventually
from tests.gateway.api.test_refused_writes import TERMINATE, Outage, read_only
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.test_idempotency_keys import BookingServer, serve_booking
from tests.postgres_faults import serve_proxy, start_cluster
from tests.stack import Gateway, serve_gateway

STARTED = {"type": "turn.started", "turn_id": "x", "conversation_id": None, "model": "openai/gpt-oss-120b"}
SHORT_LEASE: dict[str, Any] = {
    "heartbeat_seconds": 0.5,
    "heartbeat_timeout_seconds": 4.0,
    "database_statement_timeout_seconds": 5.0,
    "database_silence_timeout_seconds": 6.0,  # ends a transaction that was cut off, with its locks
}
TURNS = 12


async def insert_turn(
    db: asyncpg.Connection, *events: str, options: str = "{}", worker_id: UUID | None = None, attempts: int = 0
) -> str:
    """Store a running turn of a dead worker, or of no worker.

    Returns its id.
    """
    turn_id = uuid4()
    async with db.transaction():
        await db.execute(
            "INSERT INTO turns (id, owner, status, prompt, messages, model_name, parameters, options, worker_id,"
            " attempts) VALUES ($1, 'local', 'running', 'x', $2, 'openai/gpt-oss-120b', '{}', $3, $4, $5)",
            turn_id,
            json.dumps([{"role": "user", "content": "Hello"}]),
            options,
            worker_id,
            attempts,
        )
        payload = "\n".join(events or [json.dumps(STARTED)])
        await db.execute("INSERT INTO turn_events VALUES ($1, 1, $2, $3)", turn_id, len(events) or 1, payload)
    return str(turn_id)


async def wait_for_ends(db: asyncpg.Connection) -> dict[str, tuple[str, str | None]]:
    """Wait until every turn has ended.

    Returns the status and the error code of each.
    """

    async def have_all_ended() -> bool:
        return not await db.fetchval("SELECT count(*) FROM turns WHERE status = 'running'")

    await eventually(have_all_ended, timeout_seconds=60)
    rows = await db.fetch("SELECT id::text, status, error->>'code' FROM turns")
    return {row[0]: (row[1], row[2]) for row in rows}


@pytest.fixture
async def other(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    """A worker that looks for turns often."""
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=0.2) as gateway:
        yield gateway


async def test_turns_that_cannot_be_read_end_and_do_not_stop_the_others(other: Gateway, db: asyncpg.Connection) -> None:
    unknown_event = json.dumps({"type": "turn.dreamt", "step": 1})
    unreadable = [
        await insert_turn(db, options='{"approval": "perhaps"}'),
        await insert_turn(db, json.dumps(STARTED), unknown_event),
        await insert_turn(db, "no JSON"),
    ]
    readable = await insert_turn(db)
    ends = await wait_for_ends(db)
    assert [ends[turn_id] for turn_id in unreadable] == [("failed", "turn_unreadable")] * 3
    assert ends[readable] == ("completed", None)
    assert other.state.tasks.down_vital_tasks == ()
    async with asyncio.timeout(30):
        for turn_id in unreadable[1:]:
            [*_, last] = await read_turn_events(other, turn_id)
            assert last.type == "stream.closing"


async def test_turn_that_kills_its_workers_fails_and_is_listed_for_admins(
    other: Gateway, db: asyncpg.Connection
) -> None:
    deadly = [await insert_turn(db, worker_id=uuid4(), attempts=attempts) for attempts in (2, 7)]
    harmless = await insert_turn(db, worker_id=uuid4(), attempts=1)
    ends = await wait_for_ends(db)
    assert [ends[turn_id] for turn_id in deadly] == [("failed", "too_many_attempts")] * 2
    assert ends[harmless] == ("completed", None)
    assert await db.fetchval("SELECT attempts FROM turns WHERE id = $1::uuid", harmless) == 0
    reply = await other.get("/api/v1/admin/turns?error=too_many_attempts")
    assert {item["id"] for item in reply.body["items"]} == set(deadly)
    assert {item["error"] for item in reply.body["items"]} == {"too_many_attempts"}
    first = (await other.get("/api/v1/admin/turns?limit=1")).body
    second = (await other.get(f"/api/v1/admin/turns?limit=1&before={first['next']}")).body
    assert [first["items"][0]["id"], second["items"][0]["id"]] == [item["id"] for item in reply.body["items"]]
    assert (await other.get("/api/v1/admin/turns?error=turn_timeout")).body == {"items": [], "next": None}


@pytest.mark.parametrize(("attempts", "stored"), [(3, "1 2 3"), (4, "")])
async def test_text_that_was_shown_is_kept_where_no_takeover_could_end_the_turn(
    other: Gateway, db: asyncpg.Connection, attempts: int, stored: str
) -> None:
    """A worker may have died of reading the last turn."""
    deltas = [json.dumps({"type": "text.delta", "step": 1, "text": text}) for text in ("1 2", " 3")]
    turn_id = await insert_turn(db, json.dumps(STARTED), *deltas, worker_id=uuid4(), attempts=attempts)
    assert (await wait_for_ends(db))[turn_id] == ("failed", "too_many_attempts")
    turn = (await other.get(f"/api/v1/turns/{turn_id}")).body
    assert (turn["response"] or "") == stored
    [*_, end] = [event for event in await read_turn_events(other, turn_id) if event.type == "turn.failed"]
    assert end.data["saved"] == ("text" if stored else "prompt")


async def test_completed_step_resets_the_attempts(other: Gateway, db: asyncpg.Connection) -> None:
    turn_id = await insert_turn(db, attempts=2)
    assert (await wait_for_ends(db))[turn_id] == ("completed", None)
    assert await db.fetchval("SELECT attempts FROM turns") == 0


async def test_turn_that_costs_its_worker_the_lease_three_times_fails(
    database_url: str, slow_simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    """The worker lives and claims its turn again each time."""
    async with serve_gateway(database_url, slow_simulator, tools_url, heartbeat_seconds=0.2) as gateway:
        runner, has_epoch = gateway.state.turn_service._runner, "SELECT epoch = $1 FROM turns"
        async with gateway.stream("count to 5000") as stream:
            await stream.read_until("text.delta")
            for takeovers in range(3):
                await eventually(lambda n=takeovers: [turn.record.epoch for turn in runner._turns.values()] == [n])
                gateway.state.lease.end()
                await eventually(lambda n=takeovers: db.fetchval(has_epoch, n + 1), timeout_seconds=30)
        [end] = (await wait_for_ends(db)).values()
        [turn_id] = await db.fetchrow("SELECT id::text FROM turns")
        failed = [event for event in await read_turn_events(gateway, turn_id) if event.type == "turn.failed"]
    assert end == ("failed", "too_many_attempts")
    assert [event.data["error"]["code"] for event in failed] == ["too_many_attempts"]


async def test_worker_without_a_lease_refuses_new_turns(
    database_url: str, simulator: Simulator, tools_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=20) as gateway:
        monkeypatch.setattr(gateway.state.lease, "renew", lambda *_: None)  # a renewal may be on its way
        gateway.state.lease.end()
        reply = await gateway.chat("Hello")
    assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")
    assert not simulator.requests


async def test_no_tool_call_starts_after_the_lease(
    database_url: str, slow_simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    """The process was frozen: it continues a turn before its timers run."""
    async with serve_gateway(database_url, slow_simulator, tools_url, heartbeat_seconds=20) as gateway:
        await db.execute("BEGIN; LOCK TABLE tool_calls IN SHARE ROW EXCLUSIVE MODE")  # holds the start of the call back
        async with gateway.stream("Add a task to buy milk") as stream:
            await eventually(lambda: count_lock_waits(db))
            gateway.state.lease._ends_at = 0.0
            await db.execute("COMMIT")
            closing = await stream.read_until("stream.closing")
        assert closing.data["reason"] == "storage_unavailable"
        assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
        assert gateway.state.turn_service.running_turns == 0


async def test_no_retry_of_a_model_call_starts_after_the_lease(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    """The process was frozen between two attempts."""
    simulator.faults.add_faults(Fault(kind="status", status=503, headers={"retry-after": "3"}))
    async with serve_gateway(database_url, simulator, tools_url, heartbeat_seconds=20) as gateway:
        chat = asyncio.create_task(gateway.chat_stream("Hello"))
        await eventually(lambda: db.fetchval("SELECT count(*) FROM turn_events WHERE payload LIKE '%model.retry%'"))
        gateway.state.lease._ends_at = 0.0
        events = (await chat).events
        assert gateway.state.turn_service.running_turns == 0
    assert (events[-1].type, events[-1].data["reason"]) == ("stream.closing", "storage_unavailable")
    assert len(simulator.requests) == 1
    assert await db.fetchval("SELECT status FROM turns") == "running"  # for any worker to claim


async def test_no_repetition_of_a_tool_call_starts_after_the_lease(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    """The process was frozen between two attempts."""
    booking = BookingServer()
    async with (
        serve_booking(database_url, simulator, booking, heartbeat_seconds=20) as (gateway,),
        gateway.stream('call book with {"seat": "1"}') as stream,
    ):
        booking.answers_to_lose = 9
        booking.on_loss = lambda: setattr(gateway.state.lease, "_ends_at", 0.0)
        closing = await stream.read_until("stream.closing")
    assert closing.data["reason"] == "storage_unavailable"
    assert len(booking.keys) == 1
    assert await db.fetchval("SELECT outcome FROM tool_calls") is None


async def test_worker_that_is_cut_off_gives_up_first_and_runs_nothing_twice(
    database_url: str, slow_simulator: Simulator, db: asyncpg.Connection
) -> None:
    async with (
        serve_effects() as effects,
        serve_proxy(database_url) as (proxy, url),
        serve_gateway(url, slow_simulator, effects.url, **SHORT_LEASE) as cut_off,
    ):
        chats = [
            asyncio.create_task(
                cut_off.chat_stream(make_payment_prompt(n), parallel_tool_calls=False, on_disconnect="continue")
            )
            for n in range(TURNS)
        ]
        await eventually(lambda: has_turns(db), timeout_seconds=20)
        await eventually(lambda: effects.payments.total() >= TURNS // 2)
        proxy.become_silent()
        async with serve_gateway(database_url, slow_simulator, effects.url, **SHORT_LEASE):
            await eventually(lambda: db.fetchval("SELECT count(*) FROM turns WHERE epoch > 0"), timeout_seconds=30)
            assert not cut_off.state.lease.is_valid
            assert all(turn.cancel_reason for turn in cut_off.state.turn_service._runner._turns.values())
            proxy.heal()
            ends = await wait_for_ends(db)
            await eventually(lambda: cut_off.state.lease.is_valid, timeout_seconds=30)
            replies = await asyncio.gather(*chats)
    assert {reply.status for reply in replies} <= {200, 503}
    assert {end for _, (end, _) in ends.items()} == {"completed"}
    outcomes = effects.check_payments(await db.fetch(CALLS))
    assert outcomes.total() == 3 * len(ends)
    assert outcomes["unknown"] > 0


async def has_turns(db: asyncpg.Connection) -> bool:
    return bool(await db.fetchval("SELECT count(*) >= $1 FROM turns WHERE status = 'running'", TURNS // 2))


@asynccontextmanager
async def locked_workers(db: asyncpg.Connection) -> AsyncGenerator[None]:
    async with db.transaction():
        await db.execute("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def deleted_worker(db: asyncpg.Connection) -> AsyncGenerator[None]:
    """Another worker claims the turns of this one."""
    await db.execute("DELETE FROM workers")
    await db.execute("UPDATE turns SET epoch = epoch + 1, worker_id = gen_random_uuid()")
    yield


OUTAGES: dict[str, Outage] = {"read-only": read_only, "lock": locked_workers, "claimed": deleted_worker}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
async def test_heartbeat_survives_an_outage(
    database_url: str,
    slow_simulator: Simulator,
    tools_url: str,
    db: asyncpg.Connection,
    outage: AbstractAsyncContextManager[None] | Outage,
) -> None:
    assert callable(outage)
    async with serve_gateway(database_url, slow_simulator, tools_url, **SHORT_LEASE) as gateway:
        async with gateway.stream("count to 100000") as stream:
            await stream.read_until("text.delta")
            async with outage(db):
                assert (await stream.read_until("stream.closing")).data["reason"] == "storage_unavailable"
        await eventually(lambda: gateway.state.lease.is_valid, timeout_seconds=30)
        assert gateway.state.tasks.down_vital_tasks == ()
        await eventually(lambda: has_answer(gateway), timeout_seconds=30)


async def test_heartbeat_survives_too_many_connections(slow_simulator: Simulator, tools_url: str) -> None:
    with start_cluster(max_connections="20") as server:
        url = server.build_url()
        await asyncio.to_thread(migrations.upgrade_schema, url)
        async with serve_gateway(url, slow_simulator, tools_url, **SHORT_LEASE) as gateway, AsyncExitStack() as stack:
            admin = await asyncpg.connect(plain_dsn(url))
            stack.push_async_callback(admin.close)
            refused = 0
            await admin.execute(TERMINATE)
            while refused < 3:  # in a row, while the gateway had no lease and no connection that it could renew it over
                try:
                    stack.push_async_callback((await asyncpg.connect(plain_dsn(url))).close)
                    refused = 0
                except asyncpg.TooManyConnectionsError:
                    ended = await admin.fetch(f"{TERMINATE} AND application_name = 'agent-gateway'")
                    refused = 0 if ended or gateway.state.lease.is_valid else refused + 1
                await asyncio.sleep(0)
            assert (await gateway.chat("count to 3")).status == 503
            await stack.aclose()
            await eventually(lambda: has_answer(gateway), timeout_seconds=30)
            assert gateway.state.tasks.down_vital_tasks == ()


async def has_answer(gateway: Gateway) -> bool:
    reply = await gateway.chat("count to 3")
    return reply.status == 200 and reply.body["response"].endswith("(simulated)")
