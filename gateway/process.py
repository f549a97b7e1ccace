"""What a server process of ours does before and around serving: its socket, its parent, its signals."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from gateway.config import ConfigError


def bind(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Told its protocol, or asyncio leaves Nagle's algorithm on, which holds an answer back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(f"{setting}: cannot listen on {host}:{port}: {reason}") from None
    listener.set_inheritable(True)
    return listener


def end_with_parent(lifeline: str | None) -> None:
    """With GATEWAY_LIFELINE=stdin, stop as by SIGTERM when standard input ends: the parent that held it is gone."""
    if lifeline == "stdin":
        threading.Thread(target=_wait_for_end_of_input, daemon=True, name="lifeline").start()


def _wait_for_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn, calling `on_stop` as soon as it is told to stop: it waits for streams, which must hear of it first.

    Being told to stop is no failure: it does not raise the signal again in the end, so the process exits with 0.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._on_stop()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
