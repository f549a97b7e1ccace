"""Server-sent events: the framing, and the response that carries ready-made frames."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.events import Entry, type_of

PING_SECONDS = 15.0
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def frame(entry: Entry) -> bytes:
    """One numbered event as an SSE frame."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, type_of(entry.event).encode(), entry.data)


def unnumbered(event: str, data: bytes) -> bytes:
    """A frame that belongs to the connection, not to the turn: a client must not resume after it."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)


class FrameStream(EventSourceResponse):
    """Sends byte strings that hold whole frames, one write each; of another `media_type` than SSE, without pings.

    sse-starlette keeps its three duties: pings, disconnects, shutdown. Only its send loop is replaced, which opens a
    cancel scope for every chunk to bound the time of a write; here the ping task looks whether a write has got stuck.
    `on_close` is called when the response is over, however it ended, also where it never began.
    On shutdown the streams end by themselves, as the runner tells them to: the grace period only bounds that.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        headers: Mapping[str, str],
        on_close: Callable[[], None],
        ping: float = PING_SECONDS,
        media_type: str = SSE,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - its stream type has a bare dict
            frames, headers=headers, media_type=media_type, ping=ping, sep="\n", shutdown_grace_period=300
        )
        self._pings = media_type == SSE
        self._frames = frames
        self._on_close = on_close
        self._writes = 0
        self._writing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()

    async def _stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames) as frames:
            async for chunk in frames:
                self._writing = True
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._writing = False
                self._writes += 1
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        stuck_at = -1
        while self.active:
            await asyncio.sleep(self._ping_interval)
            if not self._writing:
                if self._pings:
                    await self._send_ping(send)
            elif stuck_at == self._writes:
                raise SendTimeoutError
            else:
                stuck_at = self._writes

    async def _send_ping(self, send: Send) -> None:
        async with self._send_lock:
            if self.active:
                await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
