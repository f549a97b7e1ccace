"""Traces and metrics of the tool server."""

import asyncio
import os
import platform
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway_runtime.redaction.redactor import Redactor, load_rules
from gateway_runtime.telemetry.signals import TOOLS_SERVICE_NAME, read_signals
from tools_server.config import LOOPBACK_HOSTS, Settings

if TYPE_CHECKING:
    from gateway_runtime.telemetry.observer import Telemetry
    from tools_server.server import ToolServer

_FLUSH_SECONDS = 1.0
_BUILD = "tools_server.build_info"


def create_telemetry(settings: Settings, version: str) -> "Telemetry | None":
    """Return the observer of this process.

    None: nothing is on, and no library is imported.

    Raises:
        ConfigError: a variable of OpenTelemetry asks for something that is not supported.
    """
    signals = read_signals(os.environ)
    if not settings.serves_metrics and not signals.metrics and not signals.traces:
        return None
    from gateway_runtime.telemetry.observer import Telemetry

    telemetry = Telemetry()
    if settings.serves_metrics or signals.metrics:
        from gateway_runtime.telemetry import asgi, mcp_messages
        from gateway_runtime.telemetry.families import MetricFamily
        from gateway_runtime.telemetry.metrics import Metrics

        build = MetricFamily(_BUILD, "gauge", "The version.", ("version", "python"))
        telemetry.metrics = Metrics((mcp_messages.FAMILY, asgi.FAMILY, build))
        telemetry.set_gauge(_BUILD, 1, version, platform.python_version())
    if signals.traces:
        from gateway_runtime.telemetry.tracing import install_tracing

        telemetry.tracing = install_tracing(TOOLS_SERVICE_NAME, version)
    return telemetry


@asynccontextmanager
async def run_telemetry(settings: Settings, telemetry: "Telemetry | None", version: str) -> AsyncGenerator[None]:
    """Serve and send metrics inside of the block.

    On exit, send the spans that wait.

    Raises:
        ConfigError: TOOLS_METRICS_PORT is taken.
    """
    async with AsyncExitStack() as stack:
        if telemetry is not None and telemetry.tracing is not None:
            stack.push_async_callback(asyncio.to_thread, telemetry.tracing.flush, _FLUSH_SECONDS)
        metrics = None if telemetry is None else telemetry.metrics
        if metrics is not None and settings.serves_metrics:
            from gateway_runtime.telemetry.metrics_server import create_metrics_server

            async def render(accept: str) -> tuple[bytes, str]:
                return await asyncio.to_thread(metrics.render, accept)

            server = create_metrics_server(
                settings.metrics_host,
                settings.tools_metrics_port or 0,
                render,
                setting="TOOLS_METRICS_PORT",
                allowed_hosts=LOOPBACK_HOSTS if settings.metrics_on_loopback else (),
            )
            server.task.start()
            stack.push_async_callback(server.task.stop)
        if metrics is not None and read_signals(os.environ).metrics:
            from gateway_runtime.telemetry.metrics_sender import MetricsSender
            from gateway_runtime.telemetry.otlp_metrics import MetricsExport

            sender = MetricsSender(MetricsExport(metrics, TOOLS_SERVICE_NAME, version), lambda: None)
            stack.push_async_callback(sender.send_last, _FLUSH_SECONDS)
            sender.task.start()
            stack.push_async_callback(sender.task.stop)
        yield


def observe_messages(mcp: "ToolServer", settings: Settings, telemetry: "Telemetry", *, over_stdio: bool) -> None:
    """Observe the MCP messages of hosts. Their texts are redacted by REDACTION_RULES.

    Raises:
        ConfigError: the rules cannot be read.
    """
    from gateway_runtime.telemetry.mcp_messages import McpMessageObserver

    redactor = load_rules(settings.redaction_rules) if telemetry.captures_content else Redactor()

    def has_tool(_ctx: Any, name: str) -> bool:
        return mcp.has_tool(name)

    observer = McpMessageObserver(telemetry, redactor, has_tool, "pipe" if over_stdio else "tcp")
    mcp.middleware.insert(1, observer)
