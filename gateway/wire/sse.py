"""Server-sent events: framing, and a response that sends ready-made frames."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from itertools import islice

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.common.concurrency import Deadline, SupervisedTask, run_without_wait
from gateway.common.logging import get_logger
from gateway.domain.errors import ClientGone
from gateway.domain.events import Event, JournalEntry
from gateway.ports.listener import FrameSource
from gateway_runtime.connections.disconnects import get_disconnect

log = get_logger(__name__)

PING_SECONDS = 15.0
_MIN_CHECK_SECONDS = 0.02
_MAX_CHECKS = 200
"""Number of streams that are checked before others may run."""
DRAIN_SECONDS = 600.0
"""Time to read the rest of a stream after its turn."""
_MAX_WRITE_BYTES = 256 * 1024
SSE = "text/event-stream"
_PING = {"type": "http.response.body", "body": b": ping\n\n", "more_body": True}
DONE = b"data: [DONE]\n\n"
WRITE_SCOPE_KEY = "gateway.write"
"""Scope key of the `send` for body messages.

It skips middleware that only changes the response's start.
"""

PENDING_STREAMS_SCOPE_KEY = "gateway.streams"
"""Scope key of a list of responses that `send_pending_streams` sends.

It sends them when the route has returned, as the frames and objects of routing would stay in memory.
"""
_ROUTING_KEYS = ("fastapi_inner_astack", "fastapi_function_astack", "fastapi_middleware_astack")

_FRAMES: dict[type[Event], bytes] = {
    kind: b"id: %%d\nevent: %b\ndata: %%b\n\n" % str(kind.__struct_config__.tag).encode() for kind in Event.__args__
}
"""Frames of numbered events, by their class."""


def format_event(entry: JournalEntry) -> bytes:
    """Format a numbered event as an SSE frame."""
    return _FRAMES[type(entry.event)] % (entry.seq, entry.data)


def format_unnumbered_event(event: str, data: bytes) -> bytes:
    """Format an event of the connection as an SSE frame.

    It has no number, because a client must not resume after it.
    """
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)


class OpenStreams:
    """Pings the streams of a worker by one timer.

    Streams whose clients are stuck end. Each stream is checked once in `ping_seconds`; see `FrameStream.check_client`.
    """

    def __init__(self, ping_seconds: float = PING_SECONDS) -> None:
        self.task = SupervisedTask("stream pings", self._check_forever)
        self._ping_seconds = ping_seconds
        self._due: dict[FrameStream, float] = {}
        """Streams with the time of their next check, which is their order."""
        self._has_streams = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add_stream(self, stream: "FrameStream") -> None:
        """Check a stream until `remove_stream` is called."""
        self._due[stream] = asyncio.get_running_loop().time() + self._ping_seconds
        self._has_streams.set()

    def remove_stream(self, stream: "FrameStream") -> None:
        self._due.pop(stream, None)

    async def _check_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._due:
                self._has_streams.clear()
                await self._has_streams.wait()
                continue
            await asyncio.sleep(max(next(iter(self._due.values())) - loop.time(), _MIN_CHECK_SECONDS))
            self._check_due_streams(loop.time())

    def _check_due_streams(self, now: float) -> None:
        due = [stream for stream, when in islice(self._due.items(), _MAX_CHECKS) if when <= now]
        for stream in due:
            del self._due[stream]
            self._due[stream] = now + self._ping_seconds
            try:
                stream.check_client()
            except Exception:  # the other streams need their pings nevertheless
                log.exception("stream_check_failed")
                stream.end_early(SendTimeoutError())


class FrameStream(EventSourceResponse):
    """Response that sends byte strings of complete frames.

    It is sse-starlette's response without its task group; see docs/adr/0004. `OpenStreams` sends its pings (only for
    SSE), and ends it if a write makes no progress between two checks, or if the client has not read everything
    `DRAIN_SECONDS` after the turn's end: until then the turn's log stays in memory. At shutdown the runner closes the
    turn's log, which ends the frames.

    The response enters `listener`, the source of the frames, and always leaves it, even if the response never begins.
    `ready` is awaited before the response begins, and cancelled if the client disconnects. It returns further headers,
    or raises an error that is answered instead.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        headers: Mapping[str, str],
        listener: FrameSource,
        ready: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
        media_type: str = SSE,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - its stream type has a bare dict
            frames, headers=headers, media_type=media_type
        )
        del self._send_lock, self.body_iterator  # of the methods that this class replaces
        self._sends_pings = media_type == SSE
        self._frames = frames
        self._ready = ready
        self._listener = listener
        self._has_begun = False
        self._write_count = 0
        self._blocked_count = -1
        """Number of writes at a check during a write."""
        self._is_writing = False
        self._drain_deadline: Deadline | None = None
        self._sender: asyncio.Task[None] | None = None
        self._end_error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pending: list[FrameStream] | None = scope.get(PENDING_STREAMS_SCOPE_KEY)
        if pending is None:
            await self.send_response(scope, receive, send)
        else:
            pending.append(self)

    async def send_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, from the start of the response to its end."""
        streams: OpenStreams = scope["app"].state.open_streams
        self._write = scope.get(WRITE_SCOPE_KEY, send)
        disconnect = get_disconnect(scope)
        async with self._listener:
            # The frames have a task: each of their waits would be one of all layers around this response.
            sender = self._sender = asyncio.create_task(self._send_all(send))
            disconnect.add_callback(self._on_disconnect)
            streams.add_stream(self)
            try:
                await sender  # a cancellation of this task cancels it, and waits for its end
            except asyncio.CancelledError:
                request_task = asyncio.current_task()
                if (error := self._end_error) is None or (request_task is not None and request_task.cancelling()):
                    raise
                if not (self._has_begun and isinstance(error, ClientGone)):
                    raise error from None
            finally:
                self._sender = None
                disconnect.remove_callback(self._on_disconnect)
                streams.remove_stream(self)

    def _on_disconnect(self) -> None:
        self.end_early(ClientGone())

    def end_early(self, error: Exception) -> None:
        """End the response early."""
        if self._sender is not None:
            self._end_error = self._end_error or error
            self._sender.cancel()

    def check_client(self) -> None:
        """Send a ping, or end the response if its client is stuck."""
        self._check_drain_deadline()
        is_blocked = self._is_writing or not self._try_to_ping()
        if is_blocked and self._blocked_count == self._write_count:
            self.end_early(SendTimeoutError())
        self._blocked_count = self._write_count if is_blocked else -1

    def _check_drain_deadline(self) -> None:
        if self._drain_deadline is None:
            if self._listener.is_over:
                self._drain_deadline = Deadline.after(DRAIN_SECONDS)
        elif self._drain_deadline.is_over:
            self.end_early(SendTimeoutError())

    def _try_to_ping(self) -> bool:
        """Send a ping unless earlier bytes wait for the client.

        Return whether the client may have read everything.
        """
        if not self._sends_pings or not self._has_begun or not self.active:
            return True
        return run_without_wait(self._write(_PING.copy()))

    async def _send_all(self, send: Send) -> None:
        if self._ready is not None:
            self.headers.update(await self._ready())
        self._has_begun = self._is_writing = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_writing = False
        self._ready = None  # a stream may last for days, without what its start needed
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.__dict__.pop("_headers", None)
        write = self._write
        async with aclosing(self._frames) as frames:
            async for chunk in frames:
                self._is_writing = True
                if len(chunk) > _MAX_WRITE_BYTES:
                    await self._write_pieces(write, chunk)
                else:
                    await write({"type": "http.response.body", "body": chunk, "more_body": True})
                self._is_writing = False
                self._write_count += 1
        self.active = False
        self._is_writing = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_pieces(self, write: Send, chunk: bytes) -> None:
        """Write a large chunk in pieces, each of which counts as progress."""
        for start in range(0, len(chunk), _MAX_WRITE_BYTES):
            piece = chunk[start : start + _MAX_WRITE_BYTES]
            await write({"type": "http.response.body", "body": piece, "more_body": True})
            self._write_count += 1


async def send_pending_streams(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the `FrameStream` that the route has returned, if any."""
    pending: list[FrameStream] = scope[PENDING_STREAMS_SCOPE_KEY]
    if pending:
        for key in _ROUTING_KEYS:
            scope.pop(key, None)
        await pending.pop().send_response(scope, receive, send)
