"""The tool server's uvicorn server."""

import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from gateway_runtime.tls import TlsOptions

_GRACE_SECONDS = 0.5


class HttpServer(uvicorn.Server):
    """Stops within a second of SIGTERM or SIGINT, whatever runs or listens, and then counts as having ended well."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        before_stop: Callable[[], None],
        tls_options: TlsOptions | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,  # pyright: ignore[reportArgumentType] - any number will do
                **(tls_options or {}),
            )
        )
        self._before_stop = before_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Without uvicorn's own, which raises the signal again in the end: a stop that was asked for is no failure.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_stop()
        await super().shutdown(sockets)
