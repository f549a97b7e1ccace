"""Event loops with a virtual clock, stepped by a test."""

import asyncio
import selectors

_MAX_WAIT_SECONDS = 2.0


class VirtualClock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def read(self) -> float:
        return self.now


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that runs only while the test steps it.

    A worker in such a loop is frozen or killed by not stepping it any more. Timers are due by the virtual clock.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self._poller = selectors.DefaultSelector()
        super().__init__(self._poller)
        self._clock = clock
        self.set_exception_handler(lambda _loop, _context: None)  # the test checks outcomes, not stray errors

    def time(self) -> float:
        return self._clock.now

    @property
    def has_work(self) -> bool:
        """Whether a callback, a timer or a socket is ready."""
        if self._ready or self._poller.select(0):
            return True
        due_at = self.next_timer()
        return due_at is not None and due_at <= self.time()

    def next_timer(self) -> float | None:
        """Return when the next timer is due."""
        return min((handle.when() for handle in self._scheduled if not handle.cancelled()), default=None)

    def list_ready(self) -> list[str]:
        """Describe the callbacks of the next iteration."""
        owners = [getattr(handle._callback, "__self__", None) for handle in self._ready]
        return [f"{handle} {owner!r}" for handle, owner in zip(self._ready, owners, strict=True)]

    def run_one_iteration(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def wait_for_socket(self) -> bool:
        """Wait a moment of real time for a socket.

        Return whether one is ready.
        """
        return bool(self._poller.select(_MAX_WAIT_SECONDS))
