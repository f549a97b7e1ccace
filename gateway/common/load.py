"""The load of this process, which decides whether new work is accepted."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.domain.errors import Overloaded

log = get_logger(__name__)

_INTERVAL_SECONDS = 0.25
_SAMPLES_TO_OVERLOAD = 3
_RETRY_AFTER_SECONDS = 2.0
_MEMORY_SHARE = 0.85
_MIN_WORKING_MEMORY_BYTES = 128 * 1024 * 1024
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATM = Path("/proc/self/statm")


def read_resident_memory() -> int | None:
    """Read the bytes of memory that this process uses.

    Returns None where the system has no `/proc`.
    """
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


class LoadMonitor:
    """Measures the event loop's lag and the process's memory every `interval_seconds`.

    The process is overloaded after three samples in a row above `max_lag_seconds` or `max_memory_bytes`, so one pause
    does not count. It is no longer overloaded once the lag is below half of its limit and the memory below 95 % of its
    limit. A limit of None is not checked. `read_memory` returns bytes, or None if they cannot be measured.
    """

    def __init__(
        self,
        *,
        max_lag_seconds: float | None,
        max_memory_bytes: int | None,
        interval_seconds: float = _INTERVAL_SECONDS,
        read_memory: Callable[[], int | None] = read_resident_memory,
    ) -> None:
        self._max_lag_seconds = max_lag_seconds
        self._max_memory_bytes = max_memory_bytes
        self._interval_seconds = interval_seconds
        self._read_memory = read_memory
        self._high_samples = 0
        self.memory_bytes: int | None = None
        self._highest_lag = 0.0
        self.overload_reason: str | None = None
        """Public reason why new work is refused; None while it is accepted."""
        self.task = SupervisedTask("load monitor", self._measure_forever)

    def check_capacity(self) -> None:
        """Raises:
        Overloaded: the process has no capacity for new work.
        """
        if self.overload_reason is not None:
            raise Overloaded(self.overload_reason, retry_after=_RETRY_AFTER_SECONDS)

    def take_highest_lag(self) -> float:
        """Return the largest lag in seconds since the last call."""
        lag, self._highest_lag = self._highest_lag, 0.0
        return lag

    async def _measure_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + self._interval_seconds
            await asyncio.sleep(self._interval_seconds)
            self.record_sample(loop.time() - expected, self._read_memory())

    def record_sample(self, lag_seconds: float, memory_bytes: int | None) -> None:
        """Update `overload_reason` by one measurement."""
        self._highest_lag, self.memory_bytes = max(self._highest_lag, lag_seconds), memory_bytes
        reason = self._find_excess(lag_seconds, memory_bytes, share=1.0)
        self._high_samples = self._high_samples + 1 if reason else 0
        if self.overload_reason is None and self._high_samples >= _SAMPLES_TO_OVERLOAD:
            self.overload_reason = reason
            log.warning("load_shedding_started", lag_seconds=round(lag_seconds, 3), memory_bytes=memory_bytes)
        elif self.overload_reason is not None and not self._find_excess(lag_seconds, memory_bytes, share=0.5):
            self.overload_reason = None
            log.info("load_shedding_ended", lag_seconds=round(lag_seconds, 3), memory_bytes=memory_bytes)

    def _find_excess(self, lag_seconds: float, memory_bytes: int | None, *, share: float) -> str | None:
        """Return a public reason if a measurement exceeds `share` of its limit.

        For memory, the share is at least 95 %, because Python rarely returns memory to the system.
        """
        memory_limit, lag_limit = self._max_memory_bytes, self._max_lag_seconds
        if memory_limit is not None and memory_bytes is not None and memory_bytes > memory_limit * max(share, 0.95):
            return "The gateway is short of memory. Try again shortly."
        if lag_limit is not None and lag_seconds > lag_limit * share:
            return "The gateway is overloaded. Try again shortly."
        return None


def find_memory_limit(processes: int) -> int | None:
    """Find the bytes of memory that one of several processes may use.

    Together they may use 85 % of the container's or the machine's memory, but each at least 128 MiB more than this
    process uses now: on a small host, an idle process must not count as overloaded. Returns None where neither can be
    read.
    """
    limits: list[int] = []
    for file in _CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # no such version of cgroups, or "max"
            continue
    with contextlib.suppress(OSError, ValueError):  # a system without these names
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if not limits:
        return None
    floor = (read_resident_memory() or 0) + _MIN_WORKING_MEMORY_BYTES
    return max(floor, int(min(limits) * _MEMORY_SHARE / max(1, processes)))
