"""A connection to an HTTP/1.1 server.

Bytes of a response go from the event loop's callback straight to the reader, without a task that wakes for them. See
docs/adr/0032.
"""

import asyncio
import contextvars
import select
from collections.abc import AsyncIterable, Callable

import httptools

from gateway_runtime.background.waits import Deadline
from gateway_runtime.http_client.errors import HttpClientError, RequestTimedOut, ResponseBroken, ResponseTimedOut

_MAX_OVERHEAD_BYTES = 64 * 1024

Header = tuple[bytes, bytes]


class _UnexpectedResponse(Exception):
    """Error in a parser callback: a response that cannot be one."""


class HttpConnection(asyncio.Protocol):
    """A connection that carries one exchange at a time.

    `on_lost` is called when it cannot carry another one. httptools calls the methods `on_…`.
    """

    def __init__(self, on_lost: Callable[["HttpConnection"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._is_fresh = True
        self._is_lost = False
        self._unsent_bytes = 0
        self._read_seconds = self._read_at = 0.0
        self._is_writable: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self.headers: list[Header] = []
        self.status = 0
        self.reason = b""
        self._overhead_bytes = 0
        self._is_request_sent = True
        self._is_ended = self._is_paused = self._keeps_alive = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._consume: Callable[[bytes], bool] | None = None
        self._context: contextvars.Context | None = None
        self._on_end: Callable[[], None] | None = None

    @property
    def can_be_used(self) -> bool:
        return self._is_ended and not self._is_lost and not self._has_unread_bytes()

    def _has_unread_bytes(self) -> bool:
        """Return whether the idle connection has ended, or has unasked bytes.

        A busy event loop may not have read that yet, and a request would be lost.
        """
        transport = self._get_transport()
        if transport.is_closing():
            return True
        poll = select.poll()
        poll.register(transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def _can_be_kept(self) -> bool:
        if not self._is_ended or not self._is_request_sent or not self._keeps_alive:
            return False
        transport = self._get_transport()
        is_open = not self._is_lost and not transport.is_closing()
        return is_open and self._error is None and not transport.get_write_buffer_size()

    def _get_transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    # --- an exchange

    async def send_request(self, head: bytes, body: bytes | AsyncIterable[bytes], read_seconds: float | None) -> None:
        """Send a request, and wait for the head of its response.

        Raises:
            HttpClientError: there is no response.
        """
        is_early = bool(self._is_fresh and (self.status or self._pieces))
        if not self._is_fresh:
            self._reset()
        self._is_fresh = False
        if read_seconds is not None:
            self._read_seconds = read_seconds
            self._read_at = self._loop.time()
            self._timer = self._loop.call_later(read_seconds, self._check_silence)
        transport = self._get_transport()
        if isinstance(body, bytes):
            transport.write(head + body)
            self._unsent_bytes = transport.get_write_buffer_size()
        else:
            transport.write(head)
            self._is_request_sent = False
            await self._send_pieces(transport, body, read_seconds)
        while not self.status:
            await self._wait()
        if is_early:  # the server answered before it was asked
            self._is_request_sent = False

    async def _send_pieces(
        self, transport: asyncio.Transport, pieces: AsyncIterable[bytes], seconds: float | None
    ) -> None:
        """Send a body until the server answers, which it may do early."""
        async for piece in pieces:
            if self.status or self._error is not None:
                return
            transport.write(piece)
            self._read_at = self._loop.time()
            if self._is_writable is not None:
                try:
                    async with Deadline.after(seconds).limit():
                        await self._is_writable
                except TimeoutError:
                    raise RequestTimedOut("The server does not read the request.") from None
        self._is_request_sent = True

    def forget_headers(self) -> None:
        """Keep only the headers that tell the end of the body."""
        self.headers = [(name, value) for name, value in self.headers if _has_end(name.lower(), value)]

    async def push_body(self, consume: Callable[[bytes], bool]) -> bool:
        """Pass the body to a function as its bytes arrive.

        It runs in the caller's context. Return whether the body has ended. It has not when `consume` returned False:
        then nothing more is read until the next call. What `consume` raises is raised here.

        Raises:
            HttpClientError: the body is incomplete.
        """
        self._consume, self._context = consume, contextvars.copy_context()
        try:
            if self._pieces and not consume(self._take_pieces()):
                return self._is_ended
            self._resume()
            while not self._is_ended:
                await self._wait()
                if self._is_paused:
                    return False
            return True
        finally:
            self._consume = self._context = None

    async def read_piece(self) -> bytes:
        """Return what has arrived of the body, or nothing at its end.

        Raises:
            HttpClientError: the body is incomplete.
        """
        while not self._pieces and not self._is_ended:
            self._resume()
            await self._wait()
        return self._take_pieces()

    def await_end(self, on_end: Callable[[], None], seconds: float) -> bool:
        """Call `on_end` when the response ends, breaks or has more content.

        At the latest, that is after these seconds. Return whether it will be called.
        """
        if self._is_ended or self._error is not None or self._is_paused:
            return False
        if self._timer is not None:
            self._timer.cancel()
        self._on_end, self._timer = on_end, self._loop.call_later(seconds, self._wake)
        return True

    def end_exchange(self) -> bool:
        """End the exchange, and the connection if it cannot carry another.

        Return whether it can.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pieces.clear()
        if not self._can_be_kept():
            self.abort_connection()
            self._error = None  # its traceback refers to this connection
            return False
        self._resume()
        return True

    def abort_connection(self) -> None:
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        self._wake_reader()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()

    def _wake_reader(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._wake()
        self.abort_connection()

    def _take_pieces(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def _pause(self) -> None:
        self._is_paused = True
        self._get_transport().pause_reading()

    def _resume(self) -> None:
        if self._is_paused and not self._is_lost:
            self._is_paused = False
            self._read_at = self._loop.time()
            self._get_transport().resume_reading()

    def _check_silence(self) -> None:
        unsent, self._unsent_bytes = self._unsent_bytes, self._get_transport().get_write_buffer_size()
        if self._is_paused or not self._is_request_sent or self._unsent_bytes < unsent:
            self._read_at = self._loop.time()
        silent_seconds = self._loop.time() - self._read_at
        if silent_seconds < self._read_seconds:
            self._timer = self._loop.call_later(self._read_seconds - silent_seconds, self._check_silence)
        elif not self._is_ended:
            self._fail(ResponseTimedOut("The server sent nothing for too long."))

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._is_ended:  # bytes without a request
            self.abort_connection()
            return
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keeps_alive = False
            if not self._is_ended:
                self._fail(_make_parser_error(error))
                return
        if self.status:  # a head has one limit of time, however it arrives
            self._read_at = self._loop.time()
        if self._pieces and self._consume is not None:
            self._overhead_bytes = 0
            self._push(self._consume)
        elif self._pieces:
            self._overhead_bytes = 0
            if self._waiter is None and not self._is_ended:
                self._pause()
            self._wake()
        elif not self._is_ended:
            self._count_overhead(len(data))
        if self._is_ended:
            self._wake()

    def _count_overhead(self, size: int) -> None:
        """Count the bytes between parts of the body.

        They are heads, chunk sizes and trailers, which httptools keeps.
        """
        self._overhead_bytes += size
        if self._overhead_bytes > _MAX_OVERHEAD_BYTES:
            self._fail(ResponseBroken("The head or the trailers of the response are too large."))
        elif self.status:
            self._wake_reader()

    def _push(self, consume: Callable[[bytes], bool]) -> None:
        assert self._context is not None
        try:
            if not self._context.run(consume, self._take_pieces()) and not self._is_ended:
                self._pause()
                self._wake()
        except Exception as error:  # noqa: BLE001 - the waiting reader raises it
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._parser = None  # it refers to this connection
        self._stop_waiting_to_write()
        if not self._is_ended and self._error is None:
            if self.status and exc is None and not any(_has_end(name.lower(), value) for name, value in self.headers):
                self._is_ended = True
            else:
                self._error = ResponseBroken("The server closed the connection before the end of the response.")
            self._wake()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._is_writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self._read_at = self._loop.time()
        self._stop_waiting_to_write()
        self._is_writable = None

    def _stop_waiting_to_write(self) -> None:
        if self._is_writable is not None and not self._is_writable.done():
            self._is_writable.set_result(None)

    # --- httptools

    def on_message_begin(self) -> None:
        if self._is_ended:
            raise _UnexpectedResponse

    def on_status(self, status: bytes) -> None:
        self.reason = status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # a trailer is ignored
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 100:
            raise _UnexpectedResponse
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        self._stop_waiting_to_write()

    def on_message_complete(self) -> None:
        if self.status:
            assert self._parser is not None
            self._is_ended = True
            self._keeps_alive = self._parser.should_keep_alive()


def _has_end(name: bytes, value: bytes) -> bool:
    """Whether a header tells the end of its body."""
    return name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower())


def _make_parser_error(error: Exception) -> HttpClientError:
    broken = ResponseBroken("The server's response is not valid HTTP.")
    broken.__cause__ = error
    return broken
