"""The simulator as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.e2e.running_stack import ROOT, clean_environment


@contextmanager
def run_simulator(**settings: str) -> Generator[subprocess.Popen[str]]:
    """Run the simulator, whose standard input the test holds open."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.simulator"],
        cwd=ROOT,
        env=clean_environment(**settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["simulator"])


@pytest.mark.parametrize("setting", ["GATEWAY_LIFELINE", "GATEWAY_PARENT_FD"])
def test_simulator_stops_when_its_parent_closes_standard_input(setting: str) -> None:
    with run_simulator(**{setting: "stdin"}) as process:
        assert read_address(process).startswith("http://127.0.0.1:")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def test_simulator_ignores_a_lifeline_that_is_not_standard_input() -> None:
    with run_simulator(GATEWAY_LIFELINE="0") as process:
        assert process.stdin is not None
        process.stdin.close()
        read_address(process)
        process.terminate()
        assert process.wait(30) == 0


def test_invalid_parent_descriptor_is_a_one_line_error() -> None:
    with run_simulator(GATEWAY_PARENT_FD="none") as process:
        assert process.communicate(timeout=30)[1] == (
            "simulator: GATEWAY_PARENT_FD: must be the number of a file descriptor\n"
        )
        assert process.returncode == 2
