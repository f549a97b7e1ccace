"""The way to an MCP server: streamable HTTP, the SSE of old servers, or a process of our own over stdio."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from gateway.common.logging import get_logger
from gateway.mcp_client.http_transport import IsolatingTransport, certificates
from gateway.mcp_client.oauth.sign_in import AuthorizedTransport, Tokens
from gateway.mcp_client.server_config import ServerConfig

log = get_logger(__name__)

_LONGEST_LINE = 2_000
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
Hook = Callable[[httpx2.Request], Any]


class Way:
    """An open way to a server. `streams` is what the SDK's `Client` takes; `arm()`: the server has answered."""

    def __init__(self, streams: Any, arm: Callable[[], None]) -> None:
        self.streams = streams
        self.arm = arm


@asynccontextmanager
async def open_way(
    config: ServerConfig, hooks: list[Hook], on_end: Callable[[], None], tokens: Tokens
) -> AsyncGenerator[Way]:
    """Open the way that the configuration names. `on_end` is called when one that has a single stream breaks."""
    timeout = httpx2.Timeout(5, read=300, pool=5)
    authorized = AuthorizedTransport(httpx2.AsyncHTTPTransport(limits=_LIMITS, verify=certificates()), tokens)
    match config.transport:
        case "http":
            transport = IsolatingTransport(authorized)

            def arm() -> None:
                transport.armed = True

            async with httpx2.AsyncClient(
                transport=transport, headers=config.headers, event_hooks={"request": hooks}, timeout=timeout
            ) as client:
                yield Way(streamable_http_client(config.url, http_client=client), arm)
        case "sse":

            def make_client(
                headers: dict[str, Any] | None = None,
                timeout: httpx2.Timeout | None = None,
                auth: httpx2.Auth | None = None,
            ) -> httpx2.AsyncClient:
                return httpx2.AsyncClient(
                    headers=headers, timeout=timeout, auth=auth, event_hooks={"request": hooks}, transport=authorized
                )

            streams = sse_client(config.url, headers=dict(config.headers), httpx_client_factory=make_client)
            yield Way(_watched(streams, on_end), lambda: None)
        case "stdio":
            parameters = StdioServerParameters(command=config.command, args=list(config.args), env=config.env)
            async with _stderr_to_log(config.name) as errors:
                yield Way(_watched(stdio_client(parameters, errlog=errors), on_end), lambda: None)


@asynccontextmanager
async def _watched(streams: Any, on_end: Callable[[], None]) -> AsyncGenerator[tuple[Any, Any]]:
    async with streams as (read, write):
        yield _UntilEnd(read, on_end), write


class _UntilEnd:
    """The stream of a server's messages, which tells when it is over."""

    def __init__(self, inner: Any, on_end: Callable[[], None]) -> None:
        self._inner = inner
        self._on_end = on_end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> "_UntilEnd":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._inner.__aexit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._inner:
                yield message
        finally:
            self._on_end()


@asynccontextmanager
async def _stderr_to_log(server: str) -> AsyncGenerator[Any]:
    """A file for a process's standard error, whose lines go to the log."""
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader(limit=64 * 1024)
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    copying = asyncio.create_task(_copy_lines(reader, server), name=f"stderr {server}")
    errors = os.fdopen(write_end, "w")
    try:
        yield errors
    finally:
        errors.close()
        pipe.close()
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)


async def _copy_lines(reader: asyncio.StreamReader, server: str) -> None:
    while not reader.at_eof():
        try:
            line = await reader.readline()
        except ValueError:  # a line over the limit: what is there of it is dropped
            continue
        if text := line.decode(errors="replace").rstrip():
            log.info("mcp_server_said", server=server, line=text[:_LONGEST_LINE])
