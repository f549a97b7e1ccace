"""Tests of gateway processes on one Postgres, killed and replaced under load."""

import asyncio
import os
import signal
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.running_stack import RunningStack, run_stack
from tests.eventually import eventually
from tests.processes import freeze_process
from tests.stack import Client, Event, Reply, Stream

TURNS = 50
LEASE = {"HEARTBEAT_TIMEOUT_SECONDS": "8"}
"""The default. Tests that kill a worker wait for its end."""


async def start_turn(worker: Client, number: int) -> str:
    """Start a turn that continues without its client, and return its id."""
    prompt = f"Add a task to do thing {number}" if number % 5 == 0 else f"count to {150 + number}"
    async with worker.stream(prompt, on_disconnect="continue") as stream:
        await stream.read_until("tool.result" if number % 5 == 0 else "text.delta")
        return str(stream.response.headers["x-turn-id"])


async def read_events(
    worker: Client, turn_id: str, after: int = 0, *, opening: asyncio.Semaphore | None = None
) -> list[Event]:
    """Read the events after a number, and resume closed streams.

    `opening` limits the requests that wait for the head of their response.
    """
    opening = opening or asyncio.Semaphore()
    events: list[Event] = []
    while not events or events[-1].data != "[DONE]":
        after = max((event.id or 0 for event in events), default=after)
        url = f"{worker.base_url}/api/v1/turns/{turn_id}/events?after={after}"
        async with opening:
            response = await worker.session.get(url)
        async with response:
            events += [event async for event in Stream(response).read_events() if event.type != "stream.closing"]
    return events


def get_final_text(events: list[Event]) -> str:
    steps: dict[int, str] = {}
    for event in events:
        if event.type == "text.delta":
            steps[event.data["step"]] = steps.get(event.data["step"], "") + event.data["text"]
        elif event.type == "model.retry" and event.data["discard"]:
            steps.pop(event.data["step"], None)
    return next((steps[step] for step in sorted(steps, reverse=True) if steps[step]), "")


async def check_turns(worker: Client, db: asyncpg.Connection, turn_ids: list[str]) -> list[list[Event]]:
    """Check that the turns have completed and match their stored responses."""
    async with asyncio.timeout(150):
        turns = await asyncio.gather(*(read_events(worker, turn_id) for turn_id in turn_ids))
    for turn_id, events in zip(turn_ids, turns, strict=True):
        numbers: list[Any] = [event.id for event in events[:-1]]
        assert numbers == sorted(set(numbers))
        assert len([n for n, m in pairwise(numbers) if m != n + 1]) <= 1
        last_events = [
            event.type for event in events if event.type in ("turn.completed", "turn.failed", "turn.cancelled")
        ]
        assert last_events == ["turn.completed"], events[-2]
        row = await db.fetchrow("SELECT status, response FROM turns WHERE id = $1::uuid", turn_id)
        assert row is not None
        assert tuple(row) == ("completed", get_final_text(events))
    return turns


async def test_turns_of_a_killed_worker_are_completed_by_another(cluster: Cluster, db: asyncpg.Connection) -> None:
    async with cluster.run_worker(**LEASE) as first, cluster.run_worker(**LEASE) as second:
        turn_ids = await asyncio.gather(*(start_turn(first, number) for number in range(TURNS)))
        readers = [asyncio.create_task(read_events(second, turn_id)) for turn_id in turn_ids[:10]]
        first.kill()
        turns = await check_turns(second, db, turn_ids)
        live = await asyncio.gather(*readers)
    takeovers = [e for events in turns for e in events if e.type == "model.retry" and e.data["reason"] == "takeover"]
    assert takeovers
    assert live == turns[:10]
    tasks = await db.fetchval("SELECT count(*) FROM tools.tasks")
    assert tasks == TURNS // 5  # each task was added once


async def test_text_that_a_killed_worker_has_not_stored_is_discarded(cluster: Cluster, db: asyncpg.Connection) -> None:
    short_lease = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "4"}
    async with (
        cluster.run_worker(JOURNAL_FLUSH_MS="10000", **short_lease) as first,
        cluster.run_worker(**short_lease) as second,
    ):
        async with first.stream("count to 150", on_disconnect="continue") as stream:
            turn_id = str(stream.response.headers["x-turn-id"])
            for _ in range(20):
                await stream.read_until("text.delta")
            first.kill()
        assert await db.fetchval("SELECT max(last_seq) FROM turn_events WHERE turn_id = $1::uuid", turn_id) == 1
        async with asyncio.timeout(150):
            events = stream.received_events + await read_events(
                second, turn_id, after=stream.received_events[-1].id or 0
            )
    assert [event.data["discard"] for event in events if event.type == "model.retry"] == [True]
    row = await db.fetchrow("SELECT status, response FROM turns WHERE id = $1::uuid", turn_id)
    assert row is not None
    assert tuple(row) == ("completed", get_final_text(events))


async def test_restarted_worker_resumes_its_own_turns(cluster: Cluster, db: asyncpg.Connection) -> None:
    async with cluster.run_worker(**LEASE) as first:
        turn_ids = await asyncio.gather(*(start_turn(first, number) for number in range(5)))
        first.kill()
    async with cluster.run_worker(**LEASE) as restarted:
        await check_turns(restarted, db, turn_ids)


async def test_question_can_be_answered_after_all_workers_were_replaced(
    cluster: Cluster, db: asyncpg.Connection
) -> None:
    async with cluster.run_worker() as first, cluster.run_worker():
        for _ in range(2):
            await first.chat("Add a task to buy milk")
        paused = await first.chat_stream("delete the task buy milk")
        turn_id, question = paused.headers["x-turn-id"], paused.get_event_data("input.required")[0]
    async with cluster.run_worker(), cluster.run_worker() as second:
        body = {"input_id": question["input_id"], "action": "accept", "content": {"task_id": 2}}
        assert (await second.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
        (events,) = await check_turns(second, db, [turn_id])
    assert events[: len(paused.events) - 1] == paused.events[:-1]
    assert [row["id"] for row in await db.fetch("SELECT id FROM tools.tasks")] == [1]


async def test_thousand_subscribers_on_another_worker_receive_all_events(cluster: Cluster) -> None:
    async with cluster.run_worker() as first, cluster.run_worker() as second, first.stream("count to 200") as stream:
        turn_id = str(stream.response.headers["x-turn-id"])
        opening = asyncio.Semaphore(50)  # a busy client opens more connections than it can send requests in time
        readers = [asyncio.create_task(read_events(second, turn_id, opening=opening)) for _ in range(1000)]
        expected = [event async for event in stream.read_events()]
        async with asyncio.timeout(150):
            results = await asyncio.gather(*readers)
    assert all(events == expected for events in results)


async def test_cancel_reaches_a_turn_on_another_worker_by_the_bus(cluster: Cluster) -> None:
    rare = {"HEARTBEAT_SECONDS": "60", "HEARTBEAT_TIMEOUT_SECONDS": "600"}  # no heartbeat within the test
    async with (
        cluster.run_worker(**rare) as first,
        cluster.run_worker(**rare) as second,
        first.stream("count to 5000") as stream,
    ):
        await stream.read_until("text.delta")
        turn_id = stream.response.headers["x-turn-id"]
        async with asyncio.timeout(30):
            cancel = asyncio.create_task(second.post(f"/api/v1/turns/{turn_id}/cancel", None))
            await stream.read_until("turn.cancelled")
            assert (await cancel).body["status"] == "cancelled"


async def kill_postgres_until_hand_over(stack: RunningStack, chats: list[asyncio.Task[Reply]]) -> None:
    """Keep Postgres down until the worker has handed turns over."""
    freeze_process(stack.process.pid)  # the supervisor, which would restart Postgres too soon
    os.kill(int((stack.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0]), signal.SIGKILL)

    def is_handed_over() -> bool:
        closings = (chat.result().get_event_data("stream.closing") for chat in chats if chat.done())
        return any(closing[0]["reason"] == "storage_unavailable" for closing in closings if closing)

    try:
        await eventually(is_handed_over)
    finally:
        stack.process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the stack's processes in /proc")
@pytest.mark.parametrize("victim", ["postgres", "tools"])
async def test_every_turn_ends_when_postgres_or_the_tool_server_is_killed_under_load(victim: str) -> None:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        timeout = "1" if victim == "postgres" else "60"
        async with run_stack(Path(path), HEARTBEAT_SECONDS="0.5", HEARTBEAT_TIMEOUT_SECONDS=timeout) as stack:
            prompts = [f"count to {100 + n}" if n % 2 else "What is 23*19?" for n in range(TURNS)]
            chats = [asyncio.create_task(stack.chat_stream(prompt)) for prompt in prompts]
            await asyncio.wait(chats, return_when=asyncio.FIRST_COMPLETED)
            if victim == "postgres":
                await kill_postgres_until_hand_over(stack, chats)
            else:
                os.kill(stack.find_child("tools_server.cli"), signal.SIGKILL)
            replies = await asyncio.gather(*chats)

            async def have_all_ended() -> bool:
                try:
                    return not await stack.query("SELECT 1 FROM turns WHERE status = 'running' LIMIT 1")
                except asyncpg.CannotConnectNowError:  # Postgres is starting
                    return False

            await eventually(have_all_ended, timeout_seconds=60)
            assert {reply.status for reply in replies} <= {200, 503}
            stored = dict(await stack.query("SELECT id::text, response FROM turns WHERE status = 'completed'"))
            turns = {
                str(reply.headers["x-turn-id"]): await read_events(stack, reply.headers["x-turn-id"])
                for reply in replies
                if reply.status == 200
            }
            completed = {turn_id for turn_id, events in turns.items() if events[-2].type == "turn.completed"}
            assert len(completed) > TURNS // 2
            for turn_id in completed:
                assert stored[turn_id] == get_final_text(turns[turn_id])
            for reply in replies:
                if reply.get_event_data("turn.completed"):
                    assert stored[reply.headers["x-turn-id"]] == reply.text
