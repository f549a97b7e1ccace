"""Sees each message of a session between the transport and the SDK."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from mcp.client import Transport
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, RequestId

from gateway.common.concurrency import LruDict
from gateway.domain.messages import JsonObject
from gateway.mcp_client.connection.client_capabilities import declare_capabilities
from gateway.mcp_client.connection.ongoing_calls import OngoingCalls

_MAX_REQUESTS = 10_000


class SentRequest(NamedTuple):
    """A request that the server has not answered yet."""

    method: str
    params: JsonObject


class MessageTap:
    """Calls `on_result` with each request and its result.

    It may change the result before the SDK reads it. Requests that the SDK has given up are included, but calls. A
    request declares the session's `capabilities`, or those of the host that it is sent for.
    """

    def __init__(
        self,
        on_result: Callable[[SentRequest, JsonObject], Awaitable[None]],
        calls: OngoingCalls,
        capabilities: JsonObject,
    ) -> None:
        self._on_result = on_result
        self._calls = calls
        self._capabilities = capabilities
        self._requests: LruDict[RequestId, SentRequest] = LruDict(_MAX_REQUESTS)

    @asynccontextmanager
    async def watch_streams(self, transport: Transport) -> AsyncGenerator[tuple[Any, Any]]:
        """Open the transport; its streams pass their messages through the tap."""
        self._calls.begin_session()
        async with transport as (read, write):
            yield _WatchedReadStream(read, self._receive), _WatchedWriteStream(write, self._send)

    def _send(self, item: SessionMessage) -> None:
        message = item.message
        if isinstance(message, JSONRPCRequest):
            self.on_request(coerce_request_id(message.id), message.method, message.params or {})
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            cancelled = cancelled_request_id_from_params(message.params)
            if cancelled is not None:
                self._on_cancelled(coerce_request_id(cancelled))

    def _on_cancelled(self, request_id: RequestId) -> None:
        self._calls.on_cancelled(request_id)
        if (request := self._requests.get(request_id)) is not None and request.method == "tools/call":
            del self._requests[request_id]  # its arguments may be large, and nobody reads its result

    def on_request(self, request_id: RequestId, method: str, params: JsonObject) -> None:
        """Note a request before it is sent, and declare capabilities in it."""
        if request_id in self._requests:  # sent already, and left to the SDK
            return
        declare_capabilities(method, params, self._capabilities)
        self._requests[request_id] = SentRequest(method, params)
        self._calls.on_sent(request_id, method)

    async def on_result(self, request_id: RequestId, result: JsonObject) -> None:
        """Note the result of a request, before anyone reads it."""
        self._calls.on_answered(request_id)
        if (request := self._requests.pop(request_id, None)) is not None:
            await self._on_result(request, result)

    async def _receive(self, item: SessionMessage | Exception) -> None:
        if isinstance(item, Exception) or not isinstance(item.message, JSONRPCResponse | JSONRPCError):
            return
        message = item.message
        if message.id is None:
            return
        request_id = coerce_request_id(message.id)
        if isinstance(message, JSONRPCResponse):
            await self.on_result(request_id, message.result)
        else:
            self._calls.on_answered(request_id)
            self._requests.pop(request_id, None)


class _WatchedReadStream:
    """The stream of a server's messages; awaits `receive` with each."""

    def __init__(self, inner: Any, receive: Callable[[SessionMessage | Exception], Awaitable[None]]) -> None:
        self._inner = inner
        self._receive = receive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> "_WatchedReadStream":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._inner.__aexit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self._inner:
            await self._receive(item)
            yield item


class _WatchedWriteStream:
    """The stream of messages to a server; calls `send` with each."""

    def __init__(self, inner: Any, send: Callable[[SessionMessage], None]) -> None:
        self._inner = inner
        self._send = send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> "_WatchedWriteStream":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._inner.__aexit__(*error)

    async def send(self, item: SessionMessage) -> None:
        self._send(item)
        await self._inner.send(item)
