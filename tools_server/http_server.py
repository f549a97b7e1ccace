"""The tool server's uvicorn server."""

import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from gateway_runtime.tls import TlsOptions

_GRACE_SECONDS = 0.5


class HttpServer(uvicorn.Server):
    """uvicorn that stops within a second of SIGTERM or SIGINT.

    Open streams do not delay it, and the exit code is 0. `before_stop` is called before uvicorn waits for open
    requests.
    """

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
                timeout_graceful_shutdown=_GRACE_SECONDS,  # pyright: ignore[reportArgumentType] - accepts fractions
                **(tls_options or {}),
            )
        )
        self._before_stop = before_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler raises the signal again at the end, and the process would not exit with 0.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_stop()
        await super().shutdown(sockets)
