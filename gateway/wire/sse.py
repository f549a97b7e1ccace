"""Server-sent events: framing, and a response that sends ready-made frames."""

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.common.concurrency import Deadline
from gateway.domain.errors import ClientGone
from gateway.domain.events import JournalEntry, get_event_type
from gateway.ports.listener import FrameSource

PING_SECONDS = 15.0
DRAIN_SECONDS = 600.0
"""Time to read the rest of a stream after its turn."""
_MAX_WRITE_BYTES = 256 * 1024
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
WRITE_SCOPE_KEY = "gateway.write"
"""Scope key of the `send` for body messages.

It skips middleware that only changes the response's start.
"""


def format_event(entry: JournalEntry) -> bytes:
    """Format a numbered event as an SSE frame."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, get_event_type(entry.event).encode(), entry.data)


def format_unnumbered_event(event: str, data: bytes) -> bytes:
    """Format an event of the connection as an SSE frame.

    It has no number, because a client must not resume after it.
    """
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)


class FrameStream(EventSourceResponse):
    """Response that sends byte strings of complete frames.

    It is sse-starlette's response without its task group; see docs/adr/0004. It sends pings (only for SSE), detects
    disconnects, and ends the stream if a write makes no progress between two pings, or if the client has not read
    everything `DRAIN_SECONDS` after the turn's end: until then the turn's log stays in memory. At shutdown the runner
    closes the turn's log, which ends the frames.

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
        ping: float = PING_SECONDS,
        media_type: str = SSE,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - its stream type has a bare dict
            frames, headers=headers, media_type=media_type, ping=ping
        )
        self._sends_pings = media_type == SSE
        self._frames = frames
        self._ready = ready
        self._listener = listener
        self._has_begun = False
        self._write_count = 0
        self._is_writing = False
        self._drain_deadline: Deadline | None = None
        self._end_lock = asyncio.Lock()  # else a delayed ping could be written after the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._listener:
            await self._send_response(scope, receive, send)

    async def _send_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_all(send, scope.get(WRITE_SCOPE_KEY, send)))
        disconnect = asyncio.create_task(self._listen_for_disconnect(receive))
        tasks = (sender, disconnect)
        try:
            while True:
                pending_write = self._write_count if self._is_writing else -1
                done, _ = await asyncio.wait(tasks, timeout=self.ping_interval, return_when=FIRST_COMPLETED)
                if done:
                    break
                self._check_drain_deadline()
                if not self._is_writing:
                    await self._send_ping(send)
                elif pending_write == self._write_count:
                    raise SendTimeoutError
            if sender.done():
                sender.result()
            elif not self._has_begun:
                raise ClientGone
        finally:
            sender.cancel()
            disconnect.cancel()
            await asyncio.wait(tasks)

    def _check_drain_deadline(self) -> None:
        if self._drain_deadline is None:
            if self._listener.is_over:
                self._drain_deadline = Deadline.after(DRAIN_SECONDS)
        elif self._drain_deadline.is_over:
            raise SendTimeoutError

    async def _send_all(self, send: Send, write: Send) -> None:
        if self._ready is not None:
            self.headers.update(await self._ready())
        self._has_begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames) as frames:
            async for chunk in frames:
                self._is_writing = True
                if len(chunk) > _MAX_WRITE_BYTES:
                    await self._write_pieces(write, chunk)
                else:
                    await write({"type": "http.response.body", "body": chunk, "more_body": True})
                self._is_writing = False
                self._write_count += 1
        async with self._end_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_pieces(self, write: Send, chunk: bytes) -> None:
        """Write a large chunk in pieces, each of which counts as progress."""
        for start in range(0, len(chunk), _MAX_WRITE_BYTES):
            piece = chunk[start : start + _MAX_WRITE_BYTES]
            await write({"type": "http.response.body", "body": piece, "more_body": True})
            self._write_count += 1

    async def _send_ping(self, send: Send) -> None:
        if not self._sends_pings or not self._has_begun:
            return
        try:
            async with asyncio.timeout(self.ping_interval), self._end_lock:
                if self.active:
                    await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        except TimeoutError:
            raise SendTimeoutError from None
