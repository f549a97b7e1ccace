"""`/metrics` on a port of its own, without credentials."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.common.concurrency import SupervisedTask
from gateway.config import Settings
from gateway.ports.observer import MetricsPage
from gateway.settings.values import LOCAL_HOSTS, is_loopback
from gateway_runtime.settings.hosts import is_host_allowed
from gateway_runtime.sockets import bind_socket

_BACKLOG = 16
_MAX_CONNECTIONS = 32
_KEEP_ALIVE_SECONDS = 30


class _MetricsHttpServer(uvicorn.Server):
    """A server that leaves the signal handlers of the process alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class MetricsServer:
    """Serves the page while its task runs.

    Every worker listens on the same port, and answers for all.
    """

    def __init__(self, listener: socket.socket, page: MetricsPage, hosts: tuple[str, ...]) -> None:
        self._listener = listener
        self._page = page
        self._hosts = hosts
        self.task = SupervisedTask("metrics server", self._serve)

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._answer,
            log_config=None,
            access_log=False,
            lifespan="off",
            interface="asgi3",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=0,
        )
        server = _MetricsHttpServer(config)
        try:
            await server.serve(sockets=[self._listener.dup()])
        finally:
            server.should_exit = True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        response: Response
        if self._hosts and not is_host_allowed(headers.get("host", ""), self._hosts):
            response = PlainTextResponse("unknown host\n", 421)
        elif scope["path"] != "/metrics":
            response = PlainTextResponse("not found\n", 404)
        elif scope["method"] not in ("GET", "HEAD"):
            response = PlainTextResponse("method not allowed\n", 405)
        else:
            page, content_type = await self._page.render(headers.get("accept", ""))
            response = Response(page, headers={"Content-Type": content_type})
        await response(scope, receive, send)


def create_metrics_server(settings: Settings, page: MetricsPage) -> MetricsServer:
    """Bind METRICS_PORT.

    Raises:
        ConfigError: the port is taken.
    """
    assert settings.metrics_port is not None
    listener = bind_socket(
        settings.metrics_host,
        settings.metrics_port,
        setting="METRICS_PORT",
        host_setting="METRICS_HOST",
        shared=True,
        backlog=_BACKLOG,
    )
    hosts = LOCAL_HOSTS if is_loopback(settings.metrics_host) else ()
    return MetricsServer(listener, page, hosts)
