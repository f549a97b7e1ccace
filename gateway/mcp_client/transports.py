"""Transports to an MCP server: streamable HTTP, legacy SSE, and stdio."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TextIO

import httpx2
from mcp import StdioServerParameters
from mcp.client import Transport
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.mcp_client import size_limit
from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.http.event_limit import EventLimitingTransport, lift_event_limit
from gateway.mcp_client.http.start_check import StartCheckingTransport
from gateway.mcp_client.http_transport import FaultIsolatingTransport, get_ssl_context
from gateway.mcp_client.oauth.tokens import AccessTokenProvider, AuthorizedTransport
from gateway.mcp_client.stdio_lines import limit_stdio_lines
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

_MAX_LOG_LINE_LENGTH = 2_000
_MAX_LINE_BYTES = 64 * 1024
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
_HTTP_TIMEOUT = httpx2.Timeout(5, read=300, pool=5)
RequestHook = Callable[[httpx2.Request], Awaitable[None]]


class OpenTransport:
    """A transport to a server. `streams` is what the SDK's `Client` takes."""

    def __init__(self, streams: Transport, fault_isolation: FaultIsolatingTransport | None = None) -> None:
        self.streams = streams
        self._fault_isolation = fault_isolation

    def isolate_faults(self) -> None:
        """From now on a failed HTTP exchange fails its own request only.

        Call this once the server has answered.
        """
        if self._fault_isolation is not None:
            self._fault_isolation.is_isolating = True


@asynccontextmanager
async def open_transport(
    config: ServerConfig,
    hooks: list[RequestHook],
    on_end: Callable[[], None],
    tokens: AccessTokenProvider,
    identity: TokenIssuer,
) -> AsyncGenerator[OpenTransport]:
    """Open the transport that the configuration names.

    `on_end` is called when the only stream of one ends.
    """
    max_bytes = size_limit.MAX_MESSAGE_BYTES
    http_transport: httpx2.AsyncBaseTransport = httpx2.AsyncHTTPTransport(limits=_LIMITS, verify=get_ssl_context())
    if config.identity == "gateway":
        http_transport = identity.create_transport(http_transport, config.token_audience)
    limited_transport = size_limit.SizeLimitingTransport(http_transport, max_bytes)
    authorized_transport = StartCheckingTransport(AuthorizedTransport(limited_transport, tokens))
    match config.transport:
        case "http":
            isolating_transport = FaultIsolatingTransport(authorized_transport)
            async with httpx2.AsyncClient(
                transport=isolating_transport,
                headers=config.headers,
                event_hooks={"request": hooks},
                timeout=_HTTP_TIMEOUT,
            ) as client:
                streams = streamable_http_client(config.url, http_client=client, max_sse_event_size=max_bytes)
                yield OpenTransport(streams, isolating_transport)
        case "sse":
            lift_event_limit()
            yield OpenTransport(
                _watch_streams(_connect_sse(config, hooks, EventLimitingTransport(authorized_transport)), on_end)
            )
        case "stdio":
            limit_stdio_lines()
            parameters = StdioServerParameters(command=config.command, args=list(config.args), env=config.env)
            async with _stderr_to_log(config.name) as errors:
                yield OpenTransport(_watch_streams(stdio_client(parameters, errlog=errors), on_end))


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


@asynccontextmanager
async def _stderr_to_log(server: str) -> AsyncGenerator[TextIO]:
    """A file for standard error; its lines go to the log."""
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    copy_tasks = TaskSet(f"mcp stderr {server}")
    copy_tasks.spawn(_copy_lines(reader, server))
    errors = os.fdopen(write_end, "w")
    try:
        yield errors
    finally:
        errors.close()
        pipe.close()
        await copy_tasks.stop()


async def _copy_lines(reader: asyncio.StreamReader, server: str) -> None:
    while not reader.at_eof():
        try:
            line = await reader.readline()
        except ValueError:  # the line is longer than the limit: its buffered part is dropped
            continue
        if text := line.decode(errors="replace").rstrip():
            log.info("mcp_server_stderr", server=server, line=clean_text(text, _MAX_LOG_LINE_LENGTH))
