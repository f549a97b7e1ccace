"""Being an HTTP server process: its socket, its parent, and how it stops."""

import errno
import os
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn

from tools_server.config import ConfigError, Settings

_GRACE_SECONDS = 0.5
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the port is taken, or the address is not one of this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, "not a host name")
        setting = "TOOLS_SERVER_PORT" if number in (errno.EADDRINUSE, errno.EACCES) else "TOOLS_SERVER_HOST"
        raise ConfigError(f"{setting}: cannot listen on {host}:{port}: {reason}") from None
    return listener


def tls_options(settings: Settings) -> dict[str, Any]:
    """uvicorn's options for https; none where the settings name no certificate.

    Raises:
        ConfigError: the files cannot be read or used, or do not belong together.
    """
    cert, key = settings.tools_server_tls_cert_file, settings.tools_server_tls_key_file
    if cert is None or key is None:
        return {}
    password = settings.tools_server_tls_key_password
    secret = password.get_secret_value() if password else ""
    for path, setting in ((cert, "TOOLS_SERVER_TLS_CERT_FILE"), (key, "TOOLS_SERVER_TLS_KEY_FILE")):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    try:  # with a password, be it empty: without one it would ask at the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, lambda: secret)
    except (ssl.SSLError, ValueError) as error:
        said = (getattr(error, "reason", None) or "").replace("_", " ").lower()
        reason = said or "they are no PEM, or the key's password is missing or wrong"
        raise ConfigError(f"TOOLS_SERVER_TLS_CERT_FILE: {cert} with {key} cannot be used: {reason}") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_keyfile_password": secret or None}


def end_with_parent(lifeline: str | None) -> None:
    """With GATEWAY_LIFELINE=stdin, stop as by SIGTERM when standard input ends: the parent that held it is gone."""
    if lifeline == "stdin":
        threading.Thread(target=_wait_for_end_of_input, daemon=True, name="lifeline").start()


def _wait_for_end_of_input() -> None:
    try:
        while os.read(0, 4096):
            pass
    finally:  # an input that cannot be read has ended too
        os.kill(os.getpid(), signal.SIGTERM)


class HttpServer(uvicorn.Server):
    """Stops within a second of SIGTERM or SIGINT, whatever runs or listens, and then counts as having ended well."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], before_stop: Callable[[], None], tls: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,  # pyright: ignore[reportArgumentType] - any number will do
                **(tls or {}),
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
