"""The page of metrics that Prometheus reads."""

import asyncio

from gateway.observation.gauges import GaugeReader
from gateway.ports.observer import MetricsPage
from gateway_runtime.telemetry.metrics import Metrics


class MetricsExposition(MetricsPage):
    """Renders the metrics of all workers, in a thread."""

    def __init__(self, metrics: Metrics, gauges: GaugeReader) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._lock = asyncio.Lock()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """See `MetricsPage.render`. One request at a time, because each takes the processor."""
        async with self._lock:
            self._gauges.read()
            return await asyncio.to_thread(self._metrics.render, accept)
