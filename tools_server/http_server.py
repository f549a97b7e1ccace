"""The tool server's uvicorn server."""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import structlog
import uvicorn

from gateway_runtime.connections.tls_handshake import make_handshakes_count
from gateway_runtime.errors import ConfigError
from gateway_runtime.http_protocol import HttpProtocol
from gateway_runtime.tls import ReloadableCertificate, TlsFiles, TlsOptions

_GRACE_SECONDS = 0.5
log = structlog.stdlib.get_logger(__name__)


def log_tls_doubt(message: str) -> None:
    """Log a doubt about the TLS files.

    Version 0.1.0 served with such files; the gateway refuses them.
    """
    log.warning("tls_files_doubtful", problem=message)


def _reload(certificate: ReloadableCertificate) -> None:
    try:
        certificate.reload()
    except ConfigError as error:
        log.error("tls_certificate_refused", problem=str(error))
    else:
        log.info("tls_certificate_reloaded")


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
        tls_files: TlsFiles | None = None,
        *,
        keep_alive_seconds: float = 75.0,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                timeout_keep_alive=keep_alive_seconds,  # pyright: ignore[reportArgumentType] - accepts fractions
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,  # pyright: ignore[reportArgumentType] - accepts fractions
                **(tls_options or {}),
            )
        )
        self._before_stop = before_stop
        self._tls_files = tls_files

    def reload_certificate_at_hangup(self) -> None:
        """Read the certificate again at each SIGHUP."""
        self.config.load()
        if self._tls_files is None or self.config.ssl is None:
            return
        certificate = ReloadableCertificate(self._tls_files, self.config.ssl, log_tls_doubt)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, certificate)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        make_handshakes_count(self.config)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler raises the signal again at the end, and the process would not exit with 0.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_stop()
        await super().shutdown(sockets)
