"""Keeps an embedded Postgres running, from a thread of its own.

The kernel ends Postgres with the thread that started it, and a start may take seconds. So the thread lives as long as
Postgres is needed, and no event loop waits for it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from gateway_runtime.embedded_postgres import EmbeddedPostgres

_POLL_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_STOP_TIMEOUT_SECONDS = 45.0
"""Long enough for a start that is under way, and its stop."""


class PostgresKeeper:
    """Starts an embedded Postgres, and restarts it when it is gone.

    At the end it stops Postgres, unless another process started it. The thread calls `on_lost` when Postgres is gone,
    and `on_failure` when it cannot be started again. It then tries again after growing pauses.
    """

    def __init__(
        self, server: EmbeddedPostgres, *, on_lost: Callable[[], object], on_failure: Callable[[Exception], object]
    ) -> None:
        self.server = server
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedded Postgres", daemon=True)
        self.started: Future[None] = Future()
        """Done when Postgres accepts connections, or with its first error."""

    def __enter__(self) -> Self:
        """Start Postgres, and wait until it accepts connections.

        Raises:
            EmbeddedPostgresError: it does not start.
        """
        self.start()
        try:
            self.started.result()
        except BaseException:
            self._stop.set()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread, without waiting for Postgres."""
        self._thread.start()

    def stop(self) -> None:
        """Stop Postgres if it was started here, and the thread."""
        self._stop.set()
        self._thread.join(_STOP_TIMEOUT_SECONDS)

    def _run(self) -> None:
        try:
            self.server.ensure_running()
        except Exception as error:  # noqa: BLE001 - raised by `started`
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        try:
            self._keep_running()
        finally:
            self.server.stop_if_started_here()

    def _keep_running(self) -> None:
        pause = _POLL_SECONDS
        while not self._stop.wait(pause):
            try:
                if not self.server.is_running():
                    self._on_lost()
                    self.server.ensure_running()
            except Exception as error:  # noqa: BLE001 - at the thread's end Postgres would end, too
                self._on_failure(error)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            else:
                pause = _POLL_SECONDS
