"""Two gateway processes on one Postgres, killed and replaced under load."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.e2e.up import ROOT, START_SECONDS, clean_environment, command, running_up
from tests.eventually import eventually
from tests.stack import SECRET, Client, Event, Stream, free_port

TURNS = 50


@dataclass
class Worker(Client):
    """One gateway process."""

    base_url: str
    session: aiohttp.ClientSession
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@asynccontextmanager
async def process(
    argv: list[str], url: str, session: aiohttp.ClientSession, **settings: str
) -> AsyncGenerator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(argv, cwd=ROOT, env=clean_environment(**settings), stderr=subprocess.DEVNULL)
    try:

        async def answers() -> bool:
            try:
                async with session.get(url):
                    return True
            except aiohttp.ClientConnectionError:
                assert running.poll() is None
                return False

        await eventually(answers, timeout_seconds=START_SECONDS)
        yield running
    finally:
        running.kill()
        running.wait()


class Site:
    """What the workers share: a database, a simulated Groq, a tool server."""

    def __init__(self, database_url: str, groq: str, tools: str, session: aiohttp.ClientSession) -> None:
        self._settings = {
            "DATABASE_URL": database_url, "GROQ_API_KEY": "simulated", "GROQ_BASE_URL": groq,
            "RATE_LIMIT_ENABLED": "false", "HEARTBEAT_SECONDS": "1", "HEARTBEAT_TIMEOUT_SECONDS": "60",
            "MCP_SERVER_URL": tools,
            "TOOLS_SERVER_SECRET": SECRET, "LOG_LEVEL": "ERROR",
        }  # fmt: skip
        self._session = session

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[Worker]:
        port = free_port()
        base_url = f"http://127.0.0.1:{port}"
        settings = self._settings | {"GATEWAY_PORT": str(port)}
        async with process(command("serve"), f"{base_url}/health", self._session, **settings) as running:
            yield Worker(base_url, self._session, running)


@pytest.fixture
async def site(database_url: str) -> AsyncGenerator[Site]:
    groq, tools = free_port(), free_port()
    simulator = [sys.executable, "-m", "gateway.simulator", "--port", str(groq), "--tokens-per-second", "100"]
    server = [sys.executable, "-m", "tools_server.cli"]
    settings = {"DATABASE_URL": database_url, "TOOLS_SERVER_SECRET": SECRET, "TOOLS_SERVER_PORT": str(tools)}
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=150)) as session,
        process(simulator, f"http://127.0.0.1:{groq}/", session),
        process(server, f"http://127.0.0.1:{tools}/health", session, **settings),
    ):
        yield Site(database_url, f"http://127.0.0.1:{groq}", f"http://127.0.0.1:{tools}/mcp", session)


async def begin(worker: Client, number: int) -> str:
    """Start a turn that goes on without us; its id once its text has begun."""
    prompt = f"Add a task to do thing {number}" if number % 5 == 0 else f"count to {150 + number}"
    async with worker.stream(prompt, on_disconnect="continue") as stream:
        await stream.until("tool.result" if number % 5 == 0 else "text.delta")
        return str(stream.response.headers["x-turn-id"])


async def follow(worker: Client, turn_id: str) -> list[Event]:
    """The whole turn as a follower has it: told to come again, it does."""
    events: list[Event] = []
    while not events or events[-1].data != "[DONE]":
        after = max((event.id or 0 for event in events), default=0)
        url = f"{worker.base_url}/api/v1/turns/{turn_id}/events?after={after}"
        async with worker.session.get(url) as response:
            events += [event async for event in Stream(response).events() if event.type != "stream.closing"]
    return events


def text_of(events: list[Event]) -> str:
    steps: dict[int, str] = {}
    for event in events:
        if event.type == "text.delta":
            steps[event.data["step"]] = steps.get(event.data["step"], "") + event.data["text"]
        elif event.type == "model.retry" and event.data["discard"]:
            steps.pop(event.data["step"], None)
    return next((steps[step] for step in sorted(steps, reverse=True) if steps[step]), "")


async def check_whole(worker: Client, db: asyncpg.Connection, turn_ids: list[str]) -> list[list[Event]]:
    """Every turn has ended; its journal is in order; what a follower reads is what is stored."""
    async with asyncio.timeout(150):
        followed = await asyncio.gather(*(follow(worker, turn_id) for turn_id in turn_ids))
    for turn_id, events in zip(turn_ids, followed, strict=True):
        numbers: list[Any] = [event.id for event in events[:-1]]
        assert numbers == sorted(set(numbers))
        assert len([n for n, m in pairwise(numbers) if m != n + 1]) <= 1
        ends = [event.type for event in events if event.type in ("turn.completed", "turn.failed", "turn.cancelled")]
        assert ends == ["turn.completed"], events[-2]
        row = await db.fetchrow("SELECT status, response FROM turns WHERE id = $1::uuid", turn_id)
        assert row is not None
        assert tuple(row) == ("completed", text_of(events))
    return followed


async def test_turns_of_a_killed_worker_are_completed_by_another(site: Site, db: asyncpg.Connection) -> None:
    async with site.worker() as one, site.worker() as other:
        turn_ids = await asyncio.gather(*(begin(one, number) for number in range(TURNS)))
        following = [asyncio.create_task(follow(other, turn_id)) for turn_id in turn_ids[:10]]
        one.kill()
        followed = await check_whole(other, db, turn_ids)
        live = await asyncio.gather(*following)
    taken_over = [
        e for events in followed for e in events if e.type == "model.retry" and e.data["reason"] == "takeover"
    ]
    assert taken_over
    assert live == followed[:10]
    done = await db.fetchval("SELECT count(*) FROM tools.tasks")
    assert done == TURNS // 5  # no task was added twice


async def test_restarted_worker_resumes_its_own_turns(site: Site, db: asyncpg.Connection) -> None:
    async with site.worker() as one:
        turn_ids = await asyncio.gather(*(begin(one, number) for number in range(5)))
        one.kill()
    async with site.worker() as again:
        await check_whole(again, db, turn_ids)


async def test_question_can_be_answered_after_all_workers_were_replaced(site: Site, db: asyncpg.Connection) -> None:
    async with site.worker() as one, site.worker():
        for _ in range(2):
            await one.chat("Add a task to buy milk")
        asking = await one.chat_stream("delete the task buy milk")
        turn_id, asked = asking.headers["x-turn-id"], asking.of("input.required")[0]
    async with site.worker(), site.worker() as other:
        body = {"input_id": asked["input_id"], "action": "accept", "content": {"task_id": 2}}
        assert (await other.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
        (events,) = await check_whole(other, db, [turn_id])
    assert events[: len(asking.events) - 1] == asking.events[:-1]
    assert [row["id"] for row in await db.fetch("SELECT id FROM tools.tasks")] == [1]


async def test_thousand_subscribers_on_another_worker_receive_all_events(site: Site) -> None:
    async with site.worker() as one, site.worker() as other, one.stream("count to 200") as stream:
        turn_id = str(stream.response.headers["x-turn-id"])
        following = [asyncio.create_task(follow(other, turn_id)) for _ in range(1000)]
        told = [event async for event in stream.events()]
        async with asyncio.timeout(150):
            seen = await asyncio.gather(*following)
    assert all(events == told for events in seen)


async def test_cancel_stops_a_turn_on_another_worker(site: Site) -> None:
    async with site.worker() as one, site.worker() as other, one.stream("count to 5000") as stream:
        await stream.until("text.delta")
        turn_id = stream.response.headers["x-turn-id"]
        asking = asyncio.create_task(other.post(f"/api/v1/turns/{turn_id}/cancel", None))
        await stream.until("turn.cancelled")
        assert (await asking).body["status"] == "cancelled"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the stack's processes in /proc")
@pytest.mark.parametrize("victim", ["postgres", "tools"])
async def test_every_turn_ends_when_postgres_or_the_tool_server_is_killed_under_load(victim: str) -> None:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        async with running_up(Path(path), HEARTBEAT_SECONDS="0.5", HEARTBEAT_TIMEOUT_SECONDS="60") as up:
            prompts = [f"count to {100 + n}" if n % 2 else "What is 23*19?" for n in range(TURNS)]
            asking = [asyncio.create_task(up.chat_stream(prompt)) for prompt in prompts]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            if victim == "postgres":
                pid = int((up.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
            else:
                pid = up.child("tools_server.cli")
            os.kill(pid, signal.SIGKILL)
            replies = await asyncio.gather(*asking)

            async def all_ended() -> bool:
                return not await up.rows("SELECT 1 FROM turns WHERE status = 'running' LIMIT 1")

            await eventually(all_ended, timeout_seconds=60)
            assert {reply.status for reply in replies} <= {200, 503}
            stored = dict(await up.rows("SELECT id::text, response FROM turns WHERE status = 'completed'"))
            whole = [reply for reply in replies if reply.of("turn.completed")]
            assert len(whole) > TURNS // 2
            for reply in whole:
                assert stored[reply.headers["x-turn-id"]] == reply.text
