"""A turn that kills each worker that runs it, beside harmless turns."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.running_stack import START_SECONDS, wait_until_ready
from tests.e2e.running_workers import Workers, run_workers
from tests.effect_server import CALLS, make_payment_prompt, serve_effects
from tests.eventually import eventually
from tests.stack import Stream

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc")

TURNS = 8


async def start_turn(workers: Workers, prompt: str) -> str:
    """Start a turn, and leave it.

    Returns its id.
    """
    async with workers.stream(prompt, parallel_tool_calls=False, on_disconnect="continue") as stream:
        await stream.read_until("turn.started")
        return stream.response.headers["x-turn-id"]


async def list_failed_turns(workers: Workers) -> list[dict[str, Any]]:
    """List the failed turns; none while no worker serves."""
    try:
        return (await workers.get("/api/v1/admin/turns?error=too_many_attempts")).body["items"]
    except aiohttp.ClientError:
        return []


async def test_turn_that_kills_its_workers_fails_after_three_takeovers_and_the_others_complete() -> None:
    killed: list[int] = []

    def kill_client(port: int) -> None:
        killed.append(workers.find_calling_worker(port, effects.port))
        os.kill(killed[-1], signal.SIGKILL)

    async with serve_effects(kill_client) as effects, run_workers(MCP_SERVER_URL=effects.url) as workers:
        for pid in workers.pids():
            async with workers.connect_to_worker(pid) as client:
                await wait_until_ready(client)
        started = await asyncio.gather(*(start_turn(workers, make_payment_prompt(n)) for n in range(TURNS)))
        async with workers.stream("call kill_client {}", on_disconnect="continue") as stream:
            deadly = stream.response.headers["x-turn-id"]
        listed = await eventually(lambda: list_failed_turns(workers), timeout_seconds=2 * START_SECONDS)
        assert [(turn["id"], turn["error"]) for turn in listed] == [(deadly, "too_many_attempts")]
        assert len(set(killed)) == effects.kills == 3

        await eventually(lambda: workers.have_served(2), timeout_seconds=START_SECONDS)
        later = await workers.chat(make_payment_prompt(TURNS))
        assert later.status == 200
        async with workers.session.get(f"{workers.base_url}/api/v1/turns/{deadly}/events") as response:
            end = await Stream(response).read_until("turn.failed")
        assert end.data["error"]["code"] == "too_many_attempts"

        unfinished = "SELECT id FROM turns WHERE status = 'running'"
        await eventually(lambda: has_no_rows(workers, unfinished), timeout_seconds=START_SECONDS)
        assert await workers.query("SELECT status, epoch, attempts FROM turns WHERE status <> 'completed'") == [
            ("failed", 3, 3)
        ]
        assert await workers.query("SELECT count(*) FROM turns WHERE status = 'completed'") == [(len(started) + 1,)]
        outcomes = effects.check_payments(await workers.query(CALLS))
    assert outcomes.total() == 3 * (TURNS + 1)
    assert effects.kills == 3


async def has_no_rows(workers: Workers, query: str) -> bool:
    return not await workers.query(query)
