"""Tests of `agent-gateway serve` alone, as one process."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.e2e.running_stack import RunningStack, run_serve
from tests.eventually import eventually

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")


async def test_serve_starts_its_killed_postgres_again() -> None:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        async with run_serve(RunningStack, Path(path), timeout_seconds=60, HEARTBEAT_SECONDS="0.5") as gateway:
            first = await gateway.chat("My name is Ada.", conversation_id="new")
            conversation_id = first.body["conversation_id"]
            async with gateway.stream("count to 100", on_disconnect="continue") as stream:
                await stream.read_until("text.delta")
                for _ in range(2):
                    pid = read_postmaster_pid(gateway)
                    os.kill(pid, signal.SIGKILL)
                    await eventually(lambda pid=pid: find_other_postmaster(gateway, pid))
                turn_id = stream.response.headers["x-turn-id"]

            async def has_completed() -> bool:
                reply = await gateway.get(f"/api/v1/turns/{turn_id}")
                return bool(reply.status == 200 and reply.body["status"] == "completed")

            await eventually(has_completed)

            async def ask_for_name() -> str | None:
                """Return the answer, or None while connections from before the restart fail (503)."""
                reply = await gateway.chat("What is my name?", conversation_id=conversation_id)
                assert reply.status in (200, 503), reply.body
                return reply.body["response"] if reply.status == 200 else None

            assert "Ada" in str(await eventually(ask_for_name))
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.wait_for_exit() == 0
            assert not gateway.find_descendants()


def read_postmaster_pid(gateway: RunningStack) -> int:
    return int((gateway.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])


def find_other_postmaster(gateway: RunningStack, pid: int) -> bool:
    """Return whether another process than `pid` runs Postgres."""
    try:
        return read_postmaster_pid(gateway) != pid
    except (OSError, ValueError):  # the file is being replaced
        return False
