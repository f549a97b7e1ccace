"""Server-sent events: the framing, and the response that carries ready-made frames."""

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.domain.errors import ClientGone
from gateway.domain.events import JournalEntry, get_event_type

PING_SECONDS = 15.0
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
WRITE_SCOPE_KEY = "gateway.write"
"""Where a request's scope has the `send` for its body: past those wrappers that only look at how an answer starts."""


def format_event(entry: JournalEntry) -> bytes:
    """One numbered event as an SSE frame."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, get_event_type(entry.event).encode(), entry.data)


def format_unnumbered_event(event: str, data: bytes) -> bytes:
    """A frame that belongs to the connection, not to the turn: a client must not resume after it."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)


class FrameStream(EventSourceResponse):
    """Sends byte strings that hold whole frames, one write each; of another `media_type` than SSE, without pings.

    sse-starlette's response with its task group taken out: that costs a turn as much as 40 tokens, and its cancelled
    tasks leave the whole request in reference cycles, on which the garbage collector then stops every stream. Two
    duties stay, pings and disconnects; a write that gets nowhere from one ping to the next ends the stream. The third,
    shutdown, is the runner's: it tells the streams, and they end by themselves.
    The response enters `listener`, from which the frames are written, and leaves it however the response ends, also
    where it never begins. `ready` is awaited before it begins: it returns further headers, or raises what is answered
    instead; it is cancelled when the client hangs up.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        headers: Mapping[str, str],
        listener: AbstractAsyncContextManager[object],
        ready: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
        ping: float = PING_SECONDS,
        media_type: str = SSE,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - its stream type has a bare dict
            frames, headers=headers, media_type=media_type, ping=ping
        )
        self._pings = media_type == SSE
        self._frames = frames
        self._ready = ready
        self._listener = listener
        self._begun = False
        self._writes = 0
        self._writing = False
        self._ending = asyncio.Lock()  # a ping that waits to be written must not come behind the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._listener:
            await self._send_response(scope, receive, send)

    async def _send_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send, scope.get(WRITE_SCOPE_KEY, send)))
        gone = asyncio.create_task(self._listen_for_disconnect(receive))
        try:
            while True:
                write = self._writes if self._writing else -1
                done, _ = await asyncio.wait((sending, gone), timeout=self.ping_interval, return_when=FIRST_COMPLETED)
                if done:
                    break
                if not self._writing:
                    await self._send_ping(send)
                elif write == self._writes:
                    raise SendTimeoutError
            if sending.done():
                sending.result()
            elif not self._begun:
                raise ClientGone
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.wait((sending, gone))

    async def _send_all(self, send: Send, write: Send) -> None:
        if self._ready is not None:
            self.headers.update(await self._ready())
        self._begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames) as frames:
            async for chunk in frames:
                self._writing = True
                await write({"type": "http.response.body", "body": chunk, "more_body": True})
                self._writing = False
                self._writes += 1
        async with self._ending:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_ping(self, send: Send) -> None:
        if not self._pings or not self._begun:
            return
        try:
            async with asyncio.timeout(self.ping_interval), self._ending:
                if self.active:
                    await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        except TimeoutError:
            raise SendTimeoutError from None
