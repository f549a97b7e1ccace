"""Tests of `agent-gateway serve --workers 2`.

All use the same processes, in order; the last test stops them.
"""

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gateway.server import forked_workers
from tests.e2e.running_stack import START_SECONDS
from tests.e2e.running_workers import Workers, read_command_line, run_workers
from tests.eventually import eventually
from tests.processes import freeze_process, read_thread_states
from tests.stack import Stream

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc")


@pytest.fixture(scope="module")
async def workers() -> AsyncGenerator[Workers]:
    async with run_workers() as running:
        yield running


async def test_serve_is_healthy_only_once_both_workers_serve(workers: Workers) -> None:
    assert len(workers.pids()) == 2
    # Both begin to listen at the same signal, but not in the same instant.
    await eventually(lambda: workers.have_served(2))
    output = workers.output.read_text()
    assert "2 workers at http://127.0.0.1:" in output
    assert "without REDIS_URL each of the 2 workers counts rate limits" in output


async def test_postgres_and_the_simulated_groq_are_started_once(workers: Workers) -> None:
    simulators = [pid for pid in workers.find_descendants() if b"gateway.simulator" in read_command_line(pid)]
    assert len(simulators) == 1
    # Two workers, the simulator, the postmaster, and what forks the workers.
    assert len(workers.find_descendants()) == 4 + forked_workers.IS_SUPPORTED
    for pid in workers.pids():
        async with workers.connect_to_worker(pid) as client:
            assert (await client.chat("What is 2+2?")).status == 200
    assert await workers.query("SELECT count(*), count(DISTINCT worker_id) FROM turns") == [(2, 2)]


async def test_workers_share_the_memory_of_imports_and_settings(workers: Workers) -> None:
    for pid in workers.pids():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
        assert sizes["Private_Dirty"] < 0.32 * sizes["Rss"]


async def test_sighup_stops_no_worker(workers: Workers) -> None:
    before = workers.pids()
    workers.process.send_signal(signal.SIGHUP)
    assert await workers.find_workers_of_new_connections(10) <= before
    assert workers.pids() == before
    assert workers.process.poll() is None


async def test_killed_worker_is_replaced_while_the_other_serves(workers: Workers) -> None:
    killed, other = workers.pids()
    freeze_process(workers.process.pid)  # or the replacement might serve already
    try:
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: read_thread_states(killed) <= {"Z"})  # all of its sockets are closed then
        assert await workers.find_workers_of_new_connections(10) == {other}
    finally:
        workers.process.send_signal(signal.SIGCONT)

    async def find_two_workers() -> set[int] | None:
        serving = await workers.find_workers_of_new_connections(20)
        return serving if len(serving) == 2 else None

    serving = await eventually(find_two_workers, timeout_seconds=START_SECONDS)
    assert serving == workers.pids()
    assert other in serving


async def test_turns_of_a_killed_worker_are_taken_over_at_once(workers: Workers) -> None:
    """The lease would last longer than the test."""
    killed, other = workers.pids()
    async with workers.connect_to_worker(other) as client:
        async with workers.connect_to_worker(killed) as first, first.stream("count to 500") as stream:
            await stream.read_until("text.delta")
            turn_id = stream.response.headers["x-turn-id"]
            os.kill(killed, signal.SIGKILL)
        async with client.session.get(f"{client.base_url}/api/v1/turns/{turn_id}/events") as response:
            events = [event async for event in Stream(response).read_events()]
    assert events[-2].type == "turn.completed"
    assert "takeover" in [event.data["reason"] for event in events if event.type == "model.retry"]
    assert await workers.query("SELECT count(*) FROM turns WHERE attempts > 0") == [(0,)]  # a completed step resets it
    await eventually(lambda: len(workers.pids()) == 2, timeout_seconds=START_SECONDS)
    await eventually(lambda: workers.have_served(2), timeout_seconds=START_SECONDS)


async def test_workers_are_replaced_when_their_fork_server_was_killed(workers: Workers) -> None:
    before = workers.pids()
    os.kill(workers.find_child("gateway.server.fork_server"), signal.SIGKILL)

    async def are_replaced() -> bool:
        try:
            return len(workers.pids() - before) == 2 and await workers.have_served(2)
        except OSError:  # none of the new ones listens yet, or an old one ended meanwhile
            return False

    await eventually(are_replaced, timeout_seconds=START_SECONDS)
    await eventually(lambda: not before & workers.pids())
    for pid in workers.pids():
        async with workers.connect_to_worker(pid) as client:
            assert (await client.chat("What is 2+2?")).status == 200


async def test_sigterm_closes_streams_of_all_workers_and_leaves_no_process(workers: Workers) -> None:
    pids = workers.find_descendants()
    first_pid, second_pid = workers.pids()
    async with (
        workers.connect_to_worker(first_pid) as first,
        workers.connect_to_worker(second_pid) as second,
        first.stream("count to 5000") as first_stream,
        second.stream("count to 5000") as second_stream,
    ):
        for stream in (first_stream, second_stream):
            await stream.read_until("text.delta")
        workers.process.terminate()
        for stream in (first_stream, second_stream):
            assert (await stream.read_until("stream.closing")).data["reason"] == "server_stopping"
    assert await workers.wait_for_exit() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
