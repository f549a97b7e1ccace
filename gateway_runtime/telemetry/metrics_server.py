"""`/metrics` on a port of its own, without credentials."""

import socket
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from gateway_runtime.background.tasks import SupervisedTask
from gateway_runtime.settings.hosts import is_host_allowed
from gateway_runtime.sockets import bind_socket

_BACKLOG = 16
_MAX_CONNECTIONS = 32
_KEEP_ALIVE_SECONDS = 30

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RenderPage = Callable[[str], Awaitable[tuple[bytes, str]]]
"""Returns the page and its content type, by the request's `Accept`."""


class _MetricsHttpServer(uvicorn.Server):
    """A server that leaves the signal handlers of the process alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class MetricsServer:
    """Serves the page while its task runs."""

    def __init__(self, listener: socket.socket, render: RenderPage, hosts: tuple[str, ...]) -> None:
        self._listener = listener
        self._render = render
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

    async def _answer(self, scope: Scope, _receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        content_type = "text/plain; charset=utf-8"
        if self._hosts and not is_host_allowed(headers.get(b"host", ""), self._hosts):
            status, page = 421, b"unknown host\n"
        elif scope["path"] != "/metrics":
            status, page = 404, b"not found\n"
        elif scope["method"] not in ("GET", "HEAD"):
            status, page = 405, b"method not allowed\n"
        else:
            status, (page, content_type) = 200, await self._render(headers.get(b"accept", ""))
        response = [(b"content-type", content_type.encode()), (b"content-length", str(len(page)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": response})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page})


def create_metrics_server(
    host: str, port: int, render: RenderPage, *, setting: str, allowed_hosts: tuple[str, ...], shared: bool = False
) -> MetricsServer:
    """Bind the port that `setting` names.

    With `shared`, every worker listens on it, and answers for all. Without `allowed_hosts`, any host may be asked for.

    Raises:
        ConfigError: the port is taken.
    """
    listener = bind_socket(host, port, setting=setting, host_setting="METRICS_HOST", shared=shared, backlog=_BACKLOG)
    return MetricsServer(listener, render, allowed_hosts)
