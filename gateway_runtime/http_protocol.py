"""uvicorn's HTTP/1.1 protocol with limits, for all servers.

Request heads, connections and what waits for a slow reader are bounded. Invalid requests get error responses.
"""

import asyncio
import json
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, cast

import structlog
import uuid_utils
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway_runtime.background.waits import LightEvent
from gateway_runtime.connections.disconnects import DISCONNECT_SCOPE_KEY, Disconnect, get_disconnect
from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.connections.slow_readers import ReaderWatch
from gateway_runtime.request_body import BODY_ARRIVED_SCOPE_KEY

log = structlog.stdlib.get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED_REQUESTS = 16
_HEAD_TIMEOUT_SECONDS = 20.0
_WRITE_TIMEOUT_SECONDS = 30.0
_MAX_DRAIN_SECONDS = 600.0
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_API_HEADERS = (*_SECURITY_HEADERS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
_HSTS_HEADER = (b"strict-transport-security", b"max-age=31536000")
REMOVED_SLASHES_SCOPE_KEY = "gateway_runtime.removed_slashes"
"""Scope key of the number of slashes removed from a path's end."""


def get_security_headers(*, over_tls: bool, page: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """Return the security headers of every response: no sniffing, no framing."""
    headers = _SECURITY_HEADERS if page else _API_HEADERS
    return (*headers, _HSTS_HEADER) if over_tls else headers


def remove_last_slash(scope: MutableMapping[str, Any]) -> None:
    """Make a path with a last slash the path without it.

    The scope keeps the number of removed slashes, from which pages with relative links tell where a browser is.
    """
    path = scope["path"]
    if len(path) > 1 and path.endswith("/"):
        scope["path"] = path.rstrip("/") or "/"
        scope["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
        scope[REMOVED_SLASHES_SCOPE_KEY] = len(path) - len(scope["path"])


_WRITABLE = LightEvent()
"""The event of all connections whose clients read."""
_WRITABLE.set()


class _Pipeline(list[Any]):
    """Queue of pipelined requests.

    uvicorn makes a deque for each connection, of 0.7 kB.
    """

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)


class RequestRefused(Exception):
    """Error in a parser callback: the request is answered with 400."""


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 connection with limits.

    uvicorn accepts heads and trailers of any size and duration, any number of connections and of pipelined requests,
    several Host headers, and waits without end for a client that does not read. It answers malformed requests itself,
    without middleware.
    """

    # With these in its dictionary, that would have more keys than instances can share, and three times the size.
    __slots__ = ("_counted_source", "_head_timer", "_reader_watch", "_running_cycle", "_unparsed_bytes")

    head_timeout_seconds = _HEAD_TIMEOUT_SECONDS
    write_timeout_seconds = _WRITE_TIMEOUT_SECONDS
    max_drain_seconds = _MAX_DRAIN_SECONDS
    """Time for a client to read a full buffer, whatever its size."""
    limits = ConnectionLimits()
    tcp_transport: asyncio.Transport | None = None
    """The connection below TLS, set before `connection_made`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unparsed_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._running_cycle: RequestResponseCycle | None = None
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        cast(Any, self.flow)._is_writable_event = _WRITABLE
        source = self.limits.find_source(self.client[0] if self.client else None)
        self._reader_watch = ReaderWatch(
            transport,
            self.tcp_transport,
            source,
            self.limits.unsent,
            interval_seconds=self.write_timeout_seconds,
            max_drain_seconds=self.max_drain_seconds,
        )
        excess = self.limits.find_excess(source)
        self._counted_source = source if excess is None else None
        if excess is None:
            self.limits.add(source)
            self._start_head_timer()
        elif excess == "source":
            self._reject_request(429, "too_many_connections", "Too many connections are open from your address.")
        else:
            self._reject_request(503, "too_many_connections", "Too many connections are open.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._reader_watch.end()
        self._release_slot()
        super().connection_lost(exc)
        cycle = self._running_cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            get_disconnect(cycle.scope).notify()

    def handle_websocket_upgrade(self) -> None:
        """Let a WebSocket protocol take over the connection.

        It counts until its end.
        """
        super().handle_websocket_upgrade()
        protocol: Any = self.transport.get_protocol()
        lose_connection = protocol.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._release_slot()
            lose_connection(exc)

        protocol.connection_lost = connection_lost

    def _release_slot(self) -> None:
        if self._counted_source is not None:
            self.limits.remove(self._counted_source)
            self._counted_source = None

    # --- slow readers

    def pause_writing(self) -> None:
        if not self.flow.write_paused:
            cast(Any, self.flow)._is_writable_event = LightEvent()
        super().pause_writing()
        self._reader_watch.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_watch.resume()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running_cycle = self.pipeline[-1][0]
        super().on_response_complete()
        self._reader_watch.look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._reader_watch.look()

    # --- request heads

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
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self._requires_host()):
            raise RequestRefused("a request has one Host header")  # RFC 9112, section 3.2
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            raise RequestRefused("too many requests wait for their responses")
        cast("dict[str, Any]", self.scope)[DISCONNECT_SCOPE_KEY] = Disconnect()
        super().on_headers_complete()
        cycle: Any = self.cycle
        if cycle is not None and cycle.scope is self.scope:  # else the request opens a WebSocket
            cycle.message_event = LightEvent()
        if not self.pipeline:  # uvicorn's own cycle is the one that arrived last
            self._running_cycle = self.cycle

    def _requires_host(self) -> bool:
        assert self.parser is not None
        return self.parser.get_http_version() == "1.1"

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()
        cast("dict[str, Any]", self.scope)[BODY_ARRIVED_SCOPE_KEY] = True
        if not self.pipeline:  # a large body has paused it, and a disconnect is noticed by reading only
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        self._reject_request(400, "invalid_http", "The request is not valid HTTP.")

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_seconds, self._on_head_timeout)

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
        self._reader_watch.look()


def limit_connections(limits: ConnectionLimits) -> type[HttpProtocol]:
    """Return a protocol whose connections count in `limits`."""
    return type("LimitedHttpProtocol", (HttpProtocol,), {"limits": limits})
