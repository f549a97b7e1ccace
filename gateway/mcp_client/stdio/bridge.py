"""Passes messages between a host's stdio and the gateway's MCP endpoint."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
    mcp_param_headers,
    x_mcp_header_map,
)
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from gateway.common.logging import get_logger
from gateway.mcp_client.http_transport import FaultIsolatingTransport

log = get_logger(__name__)

_VERSION_META = "io.modelcontextprotocol/protocolVersion"
_TIMEOUT = httpx2.Timeout(10, read=None, pool=10)
_MAX_TOOLS = 10_000
_Object = Mapping[str, Any]
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,200}")


class MessageHeaders:
    """Chooses the HTTP headers of a host's messages.

    The current protocol repeats parts of a message in headers; the legacy one has the version of its handshake.
    """

    def __init__(self) -> None:
        self._handshake_version: str | None = None
        self._parameters: dict[str, dict[tuple[str, ...], str]] = {}

    def choose_headers(self, message: JSONRPCMessage) -> dict[str, str] | None:
        """Return the headers of a message to the gateway."""
        if not isinstance(message, JSONRPCRequest | JSONRPCNotification):
            return self._choose_legacy()
        params = _as_object(message.params)
        version: object = _as_object(params.get("_meta")).get(_VERSION_META)
        if not isinstance(version, str):
            return None if message.method == "initialize" else self._choose_legacy()
        if not (_HEADER_VALUE.fullmatch(version) and _HEADER_VALUE.fullmatch(message.method)):
            return None  # the gateway refuses the message
        headers = {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: message.method}
        name = params.get(NAME_BEARING_METHODS.get(message.method, ""))
        if isinstance(name, str):
            headers[MCP_NAME_HEADER] = encode_header_value(name)
            if message.method == "tools/call":
                headers |= mcp_param_headers(self._parameters.get(name, {}), _as_object(params.get("arguments")))
        return headers

    def read_answer(self, message: JSONRPCMessage) -> None:
        """Remember what later messages need of an answer of the gateway."""
        if not isinstance(message, JSONRPCResponse):
            return
        version, tools = message.result.get("protocolVersion"), message.result.get("tools")
        if isinstance(version, str):
            self._handshake_version = version
        for tool in map(_as_object, cast(list[object], tools) if isinstance(tools, list) else ()):
            if len(self._parameters) < _MAX_TOOLS and (names := x_mcp_header_map(tool.get("inputSchema"))):
                self._parameters[str(tool.get("name"))] = names

    def _choose_legacy(self) -> dict[str, str] | None:
        return {MCP_PROTOCOL_VERSION_HEADER: self._handshake_version} if self._handshake_version else None


def _as_object(value: object) -> _Object:
    """Return a JSON object of a message; other values count as empty."""
    return cast(_Object, value) if isinstance(value, Mapping) else {}


async def run_bridge(url: str, headers: dict[str, str], transport: httpx2.AsyncBaseTransport) -> None:
    """Serve the host at this process's stdio until it closes its end.

    A failed exchange is the error of its own request, so that a gateway that restarts does not end the bridge.
    """
    isolating = FaultIsolatingTransport(transport)
    isolating.is_isolating = True
    chosen = MessageHeaders()
    async with (
        stdio_server() as (from_host, to_host),
        to_host,
        httpx2.AsyncClient(headers=headers, transport=isolating, timeout=_TIMEOUT) as client,
        streamable_http_client(url, http_client=client) as (from_gateway, to_gateway),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_pass_answers, from_gateway, to_host, chosen)
        async for item in from_host:
            if isinstance(item, Exception):
                log.warning("bridge_message_unreadable", error=type(item).__name__)
                continue
            metadata = ClientMessageMetadata(headers=chosen.choose_headers(item.message))
            await to_gateway.send(SessionMessage(item.message, metadata))
        tasks.cancel_scope.cancel()


async def _pass_answers(
    source: ReadStream[SessionMessage | Exception],
    target: WriteStream[SessionMessage],
    chosen: MessageHeaders,
) -> None:
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the host has left
        async for item in source:
            if isinstance(item, Exception):
                log.warning("bridge_exchange_failed", error=type(item).__name__)
                continue
            chosen.read_answer(item.message)
            await target.send(SessionMessage(item.message))
