"""Runs the console's HTTP server."""

import asyncio
import logging
import signal
import socket
from typing import Any

from gateway_console.settings import ConsoleSettings
from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.connections.websockets import limit_websockets
from gateway_runtime.http_protocol import limit_connections
from gateway_runtime.log_text import EscapingFormatter
from gateway_runtime.parent_watchdog import stop_with_parent
from gateway_runtime.process.memory import return_large_blocks
from gateway_runtime.sockets import bind_socket

_MAX_MESSAGE_BYTES = 1024 * 1024
"""Bytes of a browser's message, after decompression."""


def run_console(settings: ConsoleSettings) -> None:
    """Serve until a signal stops it.

    Raises:
        ConfigError: the port is taken.
    """
    listener = bind_socket(settings.console_host, settings.console_port, setting="CONSOLE_PORT")
    listener.listen(256)
    return_large_blocks()
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if settings.gateway_parent_fd is not None:
        stop_with_parent(settings.gateway_parent_fd)
    asyncio.run(_serve(settings, listener))


async def _serve(settings: ConsoleSettings, listener: socket.socket) -> None:
    import uvicorn

    from gateway_console.app import create_app

    limits = ConnectionLimits()
    config: Any = uvicorn.Config(
        create_app(settings),
        http=limit_connections(limits),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws=limit_websockets(limits),
        ws_max_size=_MAX_MESSAGE_BYTES,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    await server.serve(sockets=[listener])
