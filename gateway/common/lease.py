"""The time in which this worker may run stored turns."""

import asyncio
import time
from collections.abc import Callable

from gateway.common.logging import get_logger

log = get_logger(__name__)

_USED_PART = 0.9
"""Part of the lease that is used.

A worker gives its turns up before other workers may claim them, although no two clocks run equally fast.
"""
# CLOCK_BOOTTIME also counts the time in which the machine is suspended. Only Linux has it.
_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class WorkerLease:
    """The right to run stored turns for a time.

    Other workers may claim the turns of a worker whose lease is over. `is_valid` needs no query, so it is read right
    before each call of a model or a tool. `on_end` is called when the lease ends without a renewal, also while a query
    hangs.
    """

    def __init__(self) -> None:
        self.on_end: Callable[[], None] = _do_nothing
        self._ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_valid(self) -> bool:
        return read_clock() < self._ends_at

    def renew(self, sent_at: float, seconds: float) -> None:
        """Extend the lease.

        `sent_at` is the clock's time from before the renewal was sent.
        """
        self._ends_at = sent_at + _USED_PART * seconds
        self._schedule_end()

    def end(self) -> None:
        """End the lease now.

        Its turns are given up, and no call starts until it is renewed.
        """
        self._ends_at = 0.0
        self.stop()
        self.on_end()

    def stop(self) -> None:
        """Stop the timer, at the end of the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_end(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._ends_at - read_clock(), self._check_end)

    def _check_end(self) -> None:
        if self.is_valid:
            self._schedule_end()
            return
        log.warning("lease_lost")
        self.end()


def read_clock() -> float:
    """Return seconds on a clock that nobody sets."""
    return time.clock_gettime(_CLOCK_ID)


def _do_nothing() -> None:
    pass
