"""Signals to processes of tests, with the state that they lead to."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def freeze_process(pid: int) -> None:
    """Stop a process; return when all of its threads have stopped.

    Without `/proc`, return at once: the signal may arrive a little later.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and not read_thread_states(pid) <= {"T", "Z"}:
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.001)


def read_thread_states(pid: int) -> set[str]:
    """Read the states of a process's threads.

    `T` is stopped; `Z` has ended and is not reaped.
    """
    states: set[str] = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            states.add(stat.read_text().rsplit(")", 1)[1].split()[0])
    return states
