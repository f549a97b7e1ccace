"""TLS handshakes of a server: their number and time are limited."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from functools import partial

import structlog
import uvicorn
from uvicorn.protocols.utils import get_remote_addr

from gateway_runtime.connections.limits import ConnectionLimits
from gateway_runtime.http_protocol import HttpProtocol

log = structlog.stdlib.get_logger(__name__)

HANDSHAKE_TIMEOUT_SECONDS = 10.0


def make_handshakes_count(config: uvicorn.Config) -> None:
    """Count TLS handshakes in the limits of the server's `HttpProtocol`.

    Call it before the server starts. The event loop's own TLS server tells a protocol nothing of a connection before
    its handshake, and waits for a minute, so silent clients could open any number of connections.
    """
    if not config.loaded:
        config.load()
    if config.ssl is None:
        return
    context, config.ssl = config.ssl, None
    protocol = config.http_protocol_class
    assert issubclass(protocol, HttpProtocol)
    create_protocol = partial(HandshakeProtocol, protocol, context, protocol.limits)
    config.http_protocol_class = create_protocol  # pyright: ignore[reportAttributeAccessIssue] - called, never subclassed


class HandshakeProtocol(asyncio.Protocol):
    """A connection during its TLS handshake.

    Afterwards `create_protocol` makes its protocol.
    """

    def __init__(
        self,
        create_protocol: Callable[..., HttpProtocol],
        context: ssl.SSLContext,
        limits: ConnectionLimits,
        **options: object,
    ) -> None:
        self._create_protocol = partial(create_protocol, **options)
        self._context = context
        self._limits = limits
        self._early_data = _EarlyData()
        self._source = ""
        self._transport: asyncio.Transport | None = None
        self._handshake: Coroutine[asyncio.Future[None], None, asyncio.Transport | None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        address = get_remote_addr(transport)
        self._source = self._limits.find_source(address[0] if address else None)
        if (excess := self._limits.find_excess(self._source)) is not None:
            log.info("handshake_refused", limit=excess)
            transport.abort()
            return
        self._limits.add(self._source)
        self._transport = transport
        self._handshake = asyncio.get_running_loop().start_tls(  # pyright: ignore[reportAttributeAccessIssue]
            transport,
            self._early_data,
            self._context,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_SECONDS,
        )
        self._continue()

    def _continue(self, _waiter: asyncio.Future[None] | None = None) -> None:
        """Run the handshake until it waits, or has ended.

        Its first step gives the connection's data to TLS. A task would take this step later, and uvloop would deliver
        the data here before.
        """
        assert self._handshake is not None
        try:
            waiter = self._handshake.send(None)
        except StopIteration as end:
            self._limits.remove(self._source)
            if end.value is not None:
                protocol = self._create_protocol()
                protocol.tcp_transport = self._transport
                self._early_data.hand_over(end.value, protocol)
        except OSError as error:  # also ssl.SSLError, TimeoutError and ConnectionError; the connection is closed
            self._limits.remove(self._source)
            log.debug("handshake_failed", error=type(error).__name__)
        else:
            waiter.add_done_callback(self._continue)


class _EarlyData(asyncio.Protocol):
    """Data between the end of a handshake and the next protocol."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._has_ended = False
        self._is_lost = False
        self._error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self._data += data

    def eof_received(self) -> bool:
        self._has_ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._error = True, exc

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        """Let a protocol go on with the connection."""
        if self._is_lost:
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._data:
            protocol.data_received(bytes(self._data))
        if self._has_ended:
            protocol.eof_received()
