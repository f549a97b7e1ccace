"""uvicorn's WebSocket protocol with limits, for the console."""

import asyncio
from typing import Any

from uvicorn.protocols.utils import get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame

from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.connections.slow_readers import ReaderWatch

MAX_FRAGMENTS = 1_000
"""Frames of one message."""
_WRITE_TIMEOUT_SECONDS = 30.0
_MAX_DRAIN_SECONDS = 600.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket connection with limits.

    uvicorn waits without end for a client that does not read, also at the end of a connection. It answers pings of such
    a client, and joins any number of empty frames to a message.
    """

    write_timeout_seconds = _WRITE_TIMEOUT_SECONDS
    max_drain_seconds = _MAX_DRAIN_SECONDS
    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        address = get_remote_addr(self.transport)
        self._reader_watch = ReaderWatch(
            self.transport,
            None,
            self.limits.find_source(address[0] if address else None),
            self.limits.unsent,
            interval_seconds=self.write_timeout_seconds,
            max_drain_seconds=self.max_drain_seconds,
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader_watch.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_watch.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_watch.resume()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except InvalidState:  # frames behind one that ended the connection
            self._reader_watch.abort("frames after the end")
        self._reader_watch.look()

    def send_receive_event_to_app(self) -> None:
        """Pass on a message, unless its text is not UTF-8."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._reader_watch.abort("a text that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._reader_watch.look()

    def shutdown(self) -> None:
        super().shutdown()
        self._reader_watch.look()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if self.close_sent and not self.disconnected:  # the client has `close_timeout` seconds to answer
            self.loop.call_later(self.close_timeout + 1, self._look_again)
        self._reader_watch.look()

    def _look_again(self) -> None:
        if not self.disconnected:
            self._reader_watch.look()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # a client may send only so many pings as it reads pongs
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        if len(self.frames) > MAX_FRAGMENTS:
            self._reader_watch.abort("too many frames in one message")


def limit_websockets(limits: ConnectionLimits) -> type[WebSocketProtocol]:
    """Return a protocol whose unread bytes count in `limits`."""
    attributes: dict[str, Any] = {"limits": limits}
    return type("LimitedWebSocketProtocol", (WebSocketProtocol,), attributes)
