"""Traces and metrics, as far as the settings switch them on."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import State

from gateway import __version__
from gateway.common.concurrency import TaskRegistry
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.settings.values import LOCAL_HOSTS, is_loopback
from gateway_runtime.telemetry.signals import SERVICE_NAME, read_signals

if TYPE_CHECKING:
    from gateway.observation.gauges import GaugeSources
    from gateway.ports.observer import MetricsPage
    from gateway_runtime.redaction.redactor import Redactor
    from gateway_runtime.telemetry.metrics_server import MetricsServer
    from gateway_runtime.telemetry.observer import Telemetry

_FLUSH_SECONDS = 2.0
_OWN_TOOLS = frozenset({"ask_agent", "run_python"})


def create_telemetry(settings: Settings) -> "Telemetry | None":
    """Return the observer of this process.

    None: nothing is on, and no library is imported.

    Raises:
        ConfigError: a variable of OpenTelemetry asks for something that is not supported.
    """
    signals = read_signals(os.environ)
    if not settings.metrics and not any(signals):
        return None
    from gateway.observation.families import FAMILIES
    from gateway_runtime.telemetry.observer import Telemetry

    telemetry = Telemetry()
    if settings.metrics or signals.metrics:
        from gateway_runtime.telemetry.metrics import Metrics

        telemetry.metrics = Metrics(FAMILIES)
    if signals.traces:
        from gateway_runtime.telemetry.tracing import install_tracing

        telemetry.tracing = install_tracing(SERVICE_NAME, __version__)
    return telemetry


@asynccontextmanager
async def run_telemetry(
    settings: Settings,
    telemetry: "Telemetry",
    sources: "GaugeSources",
    redactor: "Redactor",
    state: State,
    tasks: TaskRegistry,
) -> AsyncGenerator[None]:
    """Read gauges and serve the metrics; on exit, send what is left.

    Raises:
        ConfigError: METRICS_PORT is taken.
    """
    _observe_messages(sources, telemetry, redactor)
    async with AsyncExitStack() as stack:
        if telemetry.tracing is not None:
            stack.push_async_callback(asyncio.to_thread, telemetry.tracing.flush, _FLUSH_SECONDS)
        if telemetry.metrics is not None:
            from gateway.observation.exposition import MetricsExposition
            from gateway.observation.gauges import GaugeReader

            gauges = GaugeReader(telemetry, sources)
            supervise(gauges.task, tasks, stack)
            if read_signals(os.environ).metrics:
                from gateway_runtime.telemetry.metrics_sender import MetricsSender
                from gateway_runtime.telemetry.otlp_metrics import MetricsExport

                export = MetricsExport(telemetry.metrics, SERVICE_NAME, __version__)
                sender = MetricsSender(export, gauges.read)
                stack.push_async_callback(sender.send_last, _FLUSH_SECONDS)
                supervise(sender.task, tasks, stack)
            exposition = MetricsExposition(telemetry.metrics, gauges)
            if settings.metrics and settings.metrics_port is not None:
                supervise(_create_metrics_server(settings, settings.metrics_port, exposition).task, tasks, stack)
            elif settings.metrics:
                state.metrics = exposition
        yield


def _create_metrics_server(settings: Settings, port: int, page: "MetricsPage") -> "MetricsServer":
    from gateway_runtime.telemetry.metrics_server import create_metrics_server

    hosts = LOCAL_HOSTS if is_loopback(settings.metrics_host) else ()
    return create_metrics_server(
        settings.metrics_host, port, page.render, setting="METRICS_PORT", allowed_hosts=hosts, shared=True
    )


def _observe_messages(sources: "GaugeSources", telemetry: "Telemetry", redactor: "Redactor") -> None:
    """Observe the messages of hosts at `/mcp`."""
    from gateway.api.mcp.host import get_principal
    from gateway_runtime.telemetry.mcp_messages import McpMessageObserver

    def has_tool(ctx: Any, name: str) -> bool:
        return name in _OWN_TOOLS or sources.toolbox.find_tool(name, get_principal(ctx)) is not None

    sources.mcp.add_middleware(McpMessageObserver(telemetry, redactor, has_tool))
