"""The task that sends metrics over OTLP."""

import asyncio
import threading
from collections.abc import Callable

from gateway_runtime.background.tasks import SupervisedTask
from gateway_runtime.telemetry.otlp_metrics import MetricsExport


class MetricsSender:
    """Sends the metrics of this process at intervals, in a thread.

    `read_gauges` is called before, to set those that change by themselves. The thread is a daemon, because a collector
    that does not answer would hold up the exit of the process.
    """

    def __init__(self, export: MetricsExport, read_gauges: Callable[[], None]) -> None:
        self._export = export
        self._read_gauges = read_gauges
        self.task = SupervisedTask("metrics export", self._send_forever)

    async def _send_forever(self) -> None:
        sending: threading.Thread | None = None
        while True:
            await asyncio.sleep(self._export.interval_seconds)
            if sending is None or not sending.is_alive():  # a slow collector gets no second request meanwhile
                self._read_gauges()
                sending = self._start_sending()

    async def send_last(self, seconds: float) -> None:
        """Send what was counted since the last time, for at most `seconds`."""
        await asyncio.to_thread(self._start_sending().join, seconds)

    def _start_sending(self) -> threading.Thread:
        thread = threading.Thread(target=self._export.send, name="metrics export", daemon=True)
        thread.start()
        return thread
