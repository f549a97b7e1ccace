"""Log lines about a collector that cannot be reached.

The SDK's own lines name the collector's address and come with each batch, so they are off.
"""

import logging

_log = logging.getLogger("gateway_runtime.telemetry")

for _name in ("opentelemetry.exporter", "opentelemetry.sdk"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class ExportReport:
    """Logs the first failure, and the first success after it.

    `lost` counts what was not sent.
    """

    def __init__(self, signal: str) -> None:
        self.lost = 0
        self._signal = signal
        self._is_failing = False

    def record(self, *, succeeded: bool, count: int) -> None:
        """Record the result of an export."""
        if not succeeded:
            self.lost += count
        if succeeded == self._is_failing:
            self._is_failing = not succeeded
            if succeeded:
                _log.info("telemetry_export_recovered: %s, lost so far: %d", self._signal, self.lost)
            else:
                _log.warning("telemetry_export_failed: %s", self._signal)
