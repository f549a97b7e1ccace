"""uvicorn's HTTP/1.1 with bounds on what comes before anyone is asked who they are, and refusals in our own shape."""

import asyncio
import json
from http import HTTPStatus

import uuid_utils
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.http.request_context import safety_headers
from gateway.common.logging import get_logger

log = get_logger(__name__)

HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 20.0


class HttpProtocol(HttpToolsProtocol):
    """One connection. uvicorn's gathers heads and trailers of any size, for as long as they take; and it answers what
    is no HTTP by itself, where no middleware sees it."""

    head_seconds = _HEAD_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gathered = 0  # bytes of which the parser has made nothing yet
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._gathered += len(data)
        super().data_received(data)
        if self._gathered > HEAD_BYTES:
            self._refuse(431, "head_too_large", f"The head of a request has at most {HEAD_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._waiting is not None:  # else it is a trailer: the request has been judged by its head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gathered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._gathered = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", "This is not a valid HTTP request.")

    def _await_head(self) -> None:
        self._waiting: asyncio.TimerHandle | None = self.loop.call_later(self.head_seconds, self._too_slow)

    def _head_is_there(self) -> None:
        self._gathered = 0
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        if self._gathered:
            self._refuse(408, "request_timeout", f"The head of a request has {self.head_seconds:g} seconds to arrive.")
        else:  # nobody asked for anything
            self.transport.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Say so and hang up; where an answer is under way, only hang up."""
        self._head_is_there()
        request_id = str(uuid_utils.uuid7())
        log.info("request_refused", code=code, status=status, request_id=request_id)
        if not self.cycle or self.cycle.response_complete:
            body = json.dumps({"error": {"code": code, "message": message, "request_id": request_id}}).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"x-request-id", request_id.encode()),
                *safety_headers(over_tls=self.scheme == "https"),
            ]
            start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
            self.transport.write(b"\r\n".join([start, *map(b": ".join, headers), b"", body]))
        self.transport.close()
