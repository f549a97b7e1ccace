"""Stops a child process when its parent is gone.

The child detects this by a socket that the parent holds open. The parent passes the number of the file descriptor in
`GATEWAY_PARENT_FD`.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

READY = b"ready"
_MAX_MESSAGE_BYTES = 4096


class ParentWatchdog:
    """Watches the parent from a thread.

    When the parent is gone, this process gets SIGTERM. A worker also reports here that it can serve, and learns here
    that all workers can.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._all_ready = asyncio.Event()
        _start_thread(fd, lambda: self._loop.call_soon_threadsafe(self._all_ready.set))

    async def wait_until_all_ready(self) -> None:
        """Report readiness and wait for the other workers.

        Return when all workers can serve or this one is to stop.
        """
        notify_parent(self._fd, READY)
        await self._all_ready.wait()

    def stop_waiting(self) -> None:
        """Release `wait_until_all_ready`. Call it in the event loop's thread."""
        self._all_ready.set()


def stop_with_parent(fd: int) -> None:
    """Send this process SIGTERM when the parent closes its end of `fd`."""
    _start_thread(fd, lambda: None)


def notify_parent(fd: int, message: bytes) -> None:
    """Write to the parent.

    Does nothing if the parent is gone.
    """
    with contextlib.suppress(OSError):
        os.write(fd, message)


def _start_thread(fd: int, on_message: Callable[[], object]) -> None:
    threading.Thread(target=_watch_parent, args=(fd, on_message), daemon=True, name="parent watchdog").start()


def _watch_parent(fd: int, on_message: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):  # a descriptor that cannot be read has ended, too
        while os.read(fd, _MAX_MESSAGE_BYTES):
            on_message()
    os.kill(os.getpid(), signal.SIGTERM)
