"""Outlives the gateway to let a package runner finish its installation.

`python install_guard.py GROUP SECONDS PIPE…` reads the pipes of a process group until the group has ended, so no write
of the installation fails, and kills what is left of it after the time.
"""

import os
import selectors
import signal
import sys
import time

_POLL_SECONDS = 0.2
_CHUNK_BYTES = 64 * 1024


def guard_group(group: int, seconds: float, pipes: list[int]) -> None:
    """Wait for a process group's end; kill it after `seconds`."""
    deadline = time.monotonic() + seconds
    selector = selectors.DefaultSelector()
    for pipe in pipes:
        selector.register(pipe, selectors.EVENT_READ)
    while is_alive(group):
        if time.monotonic() >= deadline:
            os.killpg(group, signal.SIGKILL)
            return
        if not selector.get_map():
            time.sleep(_POLL_SECONDS)
            continue
        for key, _ in selector.select(_POLL_SECONDS):
            if not os.read(key.fd, _CHUNK_BYTES):
                selector.unregister(key.fd)


def is_alive(group: int) -> bool:
    """Return whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    guard_group(int(sys.argv[1]), float(sys.argv[2]), [int(pipe) for pipe in sys.argv[3:]])
