"""HTTP for one MCP connection, with failures isolated by request.

In the unmodified SDK, one transport error ends the whole client and every call on it.
"""

import ssl
from collections.abc import AsyncGenerator
from functools import lru_cache, partial

import httpx2

from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject
from gateway.mcp_client.connection.errors import (
    GRANT_UNAVAILABLE_KEY,
    MISSING_TOKEN_KEY,
    GrantUnavailable,
    TokenUnavailable,
)
from gateway_runtime.trusted_certificates import create_trusting_context

log = get_logger(__name__)

CONNECTION_CLOSED = -32000
_UNSENT_ERRORS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
SESSION_HEADER = "mcp-session-id"
_METHOD_NOT_FOUND_CODE, _SERVER_ERROR_CODE = b"-32601", b"-32000"


@lru_cache(maxsize=1)
def get_ssl_context() -> ssl.SSLContext:
    """The trusted certificates, read once.

    Reading them takes longer than the rest of opening a connection.
    """
    return create_trusting_context(partial(httpx2.create_ssl_context, trust_env=False))


class FaultIsolatingTransport(httpx2.AsyncBaseTransport):
    """Answers a failed exchange with a JSON-RPC error.

    The error's `data.unsent` is true if the request was never sent, or was refused for lack of a token that the
    gateway cannot read now; then `data.grant_unavailable` is true too. Without a token to send, `data.missing_token` is
    the reason.

    While `is_isolating` is False it raises as usual: during the handshake the SDK must see the error, or it would take
    an unavailable server for a legacy one.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.is_isolating = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(request)
            if self.is_isolating and await _reports_lost_session(request, response):
                await response.aclose()
                return httpx2.Response(404, request=request)  # the SDK reports this as a lost session
            if self.is_isolating and response.status_code >= 500 and b"jsonrpc" not in await response.aread():
                await response.aclose()
                # It comes from a proxy, which may have sent the request on.
                return _make_error_response(request, {"unsent": False})
        except httpx2.TransportError as error:
            if not self.is_isolating:
                raise
            if isinstance(error, TokenUnavailable):
                return _make_error_response(request, {"unsent": True, MISSING_TOKEN_KEY: error.problem})
            is_grant_unavailable = isinstance(error, GrantUnavailable)
            unsent = is_grant_unavailable or isinstance(error, _UNSENT_ERRORS)
            return _make_error_response(request, {"unsent": unsent, GRANT_UNAVAILABLE_KEY: is_grant_unavailable})
        if self.is_isolating and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _FaultIsolatingStream(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _reports_lost_session(request: httpx2.Request, response: httpx2.Response) -> bool:
    """Whether the server no longer knows the session.

    Status 404 means so, whatever the body says. Servers written after the TypeScript SDK's examples answer 400.
    """
    if request.method != "POST" or SESSION_HEADER not in request.headers or response.status_code not in (400, 404):
        return False
    body = await response.aread()
    if response.status_code == 404:
        return _METHOD_NOT_FOUND_CODE not in body
    return _SERVER_ERROR_CODE in body and any(word in body.lower() for word in (b"session", b"not initialized"))


class _FaultIsolatingStream(httpx2.AsyncByteStream):
    """Ends a truncated body, so that only its own request fails."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except httpx2.TransportError as error:
            log.debug("mcp_body_truncated", error=type(error).__name__)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _make_error_response(request: httpx2.Request, data: JsonObject) -> httpx2.Response:
    error = {"code": CONNECTION_CLOSED, "message": "the connection failed", "data": data}
    return httpx2.Response(503, request=request, json={"jsonrpc": "2.0", "id": None, "error": error})
