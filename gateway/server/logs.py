"""Logs of a gateway process, with the ids of traces."""

import os
from collections.abc import Callable, Mapping

from gateway import __version__
from gateway.common.logging import configure_logging
from gateway.config import Settings
from gateway_runtime.telemetry.signals import SERVICE_NAME, load_standard_variables, read_signals


def configure_logs(settings: Settings) -> None:
    """Configure the logs.

    Raises:
        ConfigError: a variable of OpenTelemetry asks for something that is not supported.
    """
    load_standard_variables()
    signals = read_signals(os.environ)
    forward: Callable[[Mapping[str, object]], None] | None = None
    if signals.logs:
        from gateway_runtime.telemetry.logs import LogExport

        forward = LogExport(SERVICE_NAME, __version__).send
    configure_logging(
        json=settings.json_logs, level=settings.effective_log_level, adds_trace_ids=signals.traces, forward=forward
    )
