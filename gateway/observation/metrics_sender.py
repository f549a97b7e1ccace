"""The task that sends metrics over OTLP."""

import asyncio

from gateway.common.concurrency import SupervisedTask
from gateway.observation.gauges import GaugeReader
from gateway_runtime.telemetry.otlp_metrics import MetricsExport


class MetricsSender:
    """Sends the metrics of this worker at intervals, in a thread."""

    def __init__(self, export: MetricsExport, gauges: GaugeReader) -> None:
        self._export = export
        self._gauges = gauges
        self.task = SupervisedTask("metrics export", self._send_forever)

    async def _send_forever(self) -> None:
        while True:
            await asyncio.sleep(self._export.interval_seconds)
            self._gauges.read()
            await asyncio.to_thread(self._export.send)
