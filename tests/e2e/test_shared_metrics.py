"""`/metrics` of two workers on one port."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running_workers import Workers, run_workers
from tests.eventually import eventually
from tests.stack import Client

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc"),
]
TURNS = 12


@pytest.fixture(scope="module")
async def workers() -> AsyncGenerator[Workers]:
    async with run_workers(METRICS="on") as running:
        yield running


async def read_value(client: Client, name: str, **labels: str) -> float:
    async with client.session.get(f"{client.base_url}/metrics") as response:
        page = await response.text()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def wait_for_turns(client: Client, count: int) -> None:
    """Wait until so many turns are counted, after their answers."""

    async def are_counted() -> bool:
        completed = await read_value(client, "gateway_turns_total", outcome="completed")
        measured = await read_value(client, "gen_ai_invoke_agent_duration_seconds_count")
        assert max(completed, measured) <= count
        return completed == measured == count

    await eventually(are_counted)


async def test_each_worker_answers_for_both_under_load(workers: Workers) -> None:
    first, second = workers.pids()
    async with workers.connect_to_worker(first) as one, workers.connect_to_worker(second) as two:

        async def run_turns(client: Client) -> int:
            return sum([(await client.chat("What is 2+2?")).status == 200 for _ in range(TURNS)])

        async def scrape(client: Client) -> list[float]:
            return [await read_value(client, "gateway_turns_total") for _ in range(TURNS)]

        succeeded_one, succeeded_two, seen_one, seen_two = await asyncio.gather(
            run_turns(one), run_turns(two), scrape(one), scrape(two)
        )
        assert succeeded_one + succeeded_two == 2 * TURNS
        for seen in (seen_one, seen_two):  # a counter never falls, whichever worker answers
            assert seen == sorted(seen)
        for client in (one, two):
            await wait_for_turns(client, 2 * TURNS)
            assert await read_value(client, "gateway_workers") == 2


async def test_counts_of_a_killed_worker_remain_and_its_gauges_end(workers: Workers) -> None:
    killed, other = workers.pids()
    async with workers.connect_to_worker(other) as client:
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: len(workers.pids()) == 2 and killed not in workers.pids())

        async def read_workers() -> bool:
            return await read_value(client, "gateway_workers") == 2

        await eventually(read_workers)
        assert await read_value(client, "gateway_turns_total") == 2 * TURNS
        assert (await client.chat("What is 2+2?")).status == 200
        await wait_for_turns(client, 2 * TURNS + 1)
