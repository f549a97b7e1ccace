"""Transports to an MCP server: streamable HTTP, legacy SSE, and stdio."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
from mcp.client import Transport
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.http.call_lifetime import CallLifetimeTransport
from gateway.mcp_client.http.direct_calls import DirectCallTransport
from gateway.mcp_client.http.event_limit import EventLimitingTransport, lift_event_limit
from gateway.mcp_client.http.listening import ListeningTransport
from gateway.mcp_client.http.pooled_transport import IDLE_SECONDS, PooledServerTransport
from gateway.mcp_client.http.proxy import find_proxy
from gateway.mcp_client.http.start_check import StartCheckingTransport
from gateway.mcp_client.http_transport import FaultIsolatingTransport, get_ssl_context
from gateway.mcp_client.messages.lenient import accept_odd_messages
from gateway.mcp_client.oauth.tokens import AccessTokenProvider, AuthorizedTransport
from gateway.mcp_client.size_limit import SizeLimitingTransport
from gateway.mcp_client.stdio.transport import ProcessReport, open_stdio
from gateway.ports.servers import ServerConfig

_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=IDLE_SECONDS)
_HTTP_TIMEOUT = httpx2.Timeout(5, read=300, pool=5)
RequestHook = Callable[[httpx2.Request], Awaitable[None]]


class OpenTransport:
    """A transport to a server.

    `streams` is what the SDK's `Client` takes; tool calls may go through `direct_calls`.
    """

    def __init__(
        self,
        streams: Transport,
        fault_isolation: FaultIsolatingTransport | None = None,
        listening: ListeningTransport | None = None,
        direct_calls: DirectCallTransport | None = None,
    ) -> None:
        self.streams = streams
        self.direct_calls = direct_calls
        self._fault_isolation = fault_isolation
        self._listening = listening

    async def begin_calls(self) -> None:
        """Wait until the server's own requests would be heard.

        Call this once the server has answered. From then on a failed HTTP exchange fails its own request only.
        """
        if self._listening is not None:
            await self._listening.wait_until_listening()
        if self._fault_isolation is not None:
            self._fault_isolation.is_isolating = True


@asynccontextmanager
async def open_transport(
    config: ServerConfig,
    kind: Literal["http", "sse", "stdio"],
    hooks: list[RequestHook],
    on_end: Callable[[], None],
    tokens: AccessTokenProvider,
    identity: TokenIssuer,
    report: ProcessReport,
    max_bytes: int,
) -> AsyncGenerator[OpenTransport]:
    """Open a transport of this kind.

    `on_end` is called when the only stream of one ends.
    """
    http_transport = _create_http_transport(config)
    if config.identity == "gateway":
        http_transport = identity.create_transport(http_transport, config.token_audience)
    limited_transport = SizeLimitingTransport(http_transport, max_bytes)
    authorized_transport = StartCheckingTransport(AuthorizedTransport(limited_transport, tokens))
    match kind:
        case "http":
            accept_odd_messages()
            direct_calls = DirectCallTransport(authorized_transport, config.url or "", hooks, _HTTP_TIMEOUT, max_bytes)
            listening_transport = ListeningTransport(CallLifetimeTransport(direct_calls))
            isolating_transport = FaultIsolatingTransport(listening_transport)
            async with httpx2.AsyncClient(
                transport=isolating_transport,
                headers=config.headers,
                event_hooks={"request": hooks},
                timeout=_HTTP_TIMEOUT,
            ) as client:
                direct_calls.use_headers(client.headers)
                streams = streamable_http_client(config.url, http_client=client, max_sse_event_size=max_bytes)
                yield OpenTransport(streams, isolating_transport, listening_transport, direct_calls)
        case "sse":
            lift_event_limit()
            lasting_transport = CallLifetimeTransport(authorized_transport)
            yield OpenTransport(
                _watch_streams(
                    _connect_sse(config, hooks, EventLimitingTransport(lasting_transport, max_bytes)), on_end
                )
            )
        case "stdio":
            yield OpenTransport(_watch_streams(open_stdio(config, report, max_bytes), on_end))


def _create_http_transport(config: ServerConfig) -> httpx2.AsyncBaseTransport:
    if config.url and config.proxy and (proxy := find_proxy(config.url)):
        return httpx2.AsyncHTTPTransport(limits=_LIMITS, verify=get_ssl_context(), proxy=proxy)
    return PooledServerTransport(get_ssl_context())


def _connect_sse(config: ServerConfig, hooks: list[RequestHook], transport: httpx2.AsyncBaseTransport) -> Transport:
    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=headers, timeout=timeout, auth=auth, event_hooks={"request": hooks}, transport=transport
        )

    return sse_client(config.url, headers=dict(config.headers), httpx_client_factory=make_client)


@asynccontextmanager
async def _watch_streams(transport: Transport, on_end: Callable[[], None]) -> AsyncGenerator[tuple[Any, Any]]:
    async with transport as (read, write):
        yield _EndDetectingStream(read, on_end), write


class _EndDetectingStream:
    """The stream of a server's messages; calls `on_end` when it ends."""

    def __init__(self, inner: Any, on_end: Callable[[], None]) -> None:
        self._inner = inner
        self._on_end = on_end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> "_EndDetectingStream":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._inner.__aexit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._inner:
                yield message
        finally:
            self._on_end()
