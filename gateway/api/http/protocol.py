"""uvicorn's HTTP/1.1 protocol with limits on request heads.

It answers invalid requests with the gateway's error responses.
"""

import asyncio
import json
from http import HTTPStatus

import uuid_utils
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.http.request_context import get_security_headers
from gateway.common.logging import get_logger

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
_HEAD_TIMEOUT_SECONDS = 20.0


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 connection that limits the request head's size and time.

    uvicorn accepts heads and trailers of any size and duration, and answers malformed requests itself, without
    middleware.
    """

    head_timeout_seconds = _HEAD_TIMEOUT_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unparsed_bytes = 0
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._reject_request(431, "head_too_large", f"The request head exceeds {MAX_HEAD_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # else this is a trailer, which must not change a checked request
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._reject_request(400, "invalid_http", "The request is not valid HTTP.")

    def _start_head_timer(self) -> None:
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(
            self.head_timeout_seconds, self._on_head_timeout
        )

    def _stop_head_timer(self) -> None:
        self._unparsed_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        if self._unparsed_bytes:
            message = f"The request head did not arrive within {self.head_timeout_seconds:g} seconds."
            self._reject_request(408, "request_timeout", message)
        else:  # an idle connection, without a request to answer
            self.transport.close()

    def _reject_request(self, status: int, code: str, message: str) -> None:
        """Send an error response and close the connection.

        The response is left out while another one is being sent.
        """
        self._stop_head_timer()
        request_id = str(uuid_utils.uuid7())
        log.info("request_rejected", code=code, status=status, request_id=request_id)
        if not self.cycle or self.cycle.response_complete:
            body = json.dumps({"error": {"code": code, "message": message, "request_id": request_id}}).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"x-request-id", request_id.encode()),
                *get_security_headers(over_tls=self.scheme == "https"),
            ]
            start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
            self.transport.write(b"\r\n".join([start, *map(b": ".join, headers), b"", body]))
        self.transport.close()
