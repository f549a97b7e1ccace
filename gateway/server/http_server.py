"""The uvicorn server of a gateway process."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from gateway_runtime.connections.tls_handshake import make_handshakes_count

_LISTENERS_PER_SOCKET = 8


class GatewayHttpServer(uvicorn.Server):
    """uvicorn that calls `on_stop` at the signal.

    Open streams can thus end before uvicorn waits for them. A requested stop is no failure: the signal is not raised
    again at the end, so the process exits with 0.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen several times on each socket.

        uvloop accepts one connection per listener and loop pass. With many streams a pass takes long, and new clients
        would wait for seconds. See docs/adr/0006.
        """
        make_handshakes_count(self.config)
        copies = [listener.dup() for listener in sockets or () for _ in range(_LISTENERS_PER_SOCKET - 1)]
        await super().startup([*(sockets or ()), *copies] or None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._on_stop()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
