"""A gateway whose Postgres has a disk that is full."""

import asyncio
import json
import sys

import pytest

from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment


async def test_full_disk_fails_readiness_and_new_turns_until_there_is_room() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.chaos.full_disk",
        cwd=ROOT,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(2 * START_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0
    outcome = json.loads(output.decode().splitlines()[-1])
    if outcome is None:
        pytest.skip("this system does not allow mounts")
    assert (outcome["before"], outcome["after"]) == ([200, None], [200, None])
    assert outcome["full"] == [503, "storage_unavailable"]
    for reason in (outcome["reason"], outcome["refused"]):
        assert "SQLSTATE 53100" in reason or "does not answer" in reason  # Postgres may end
