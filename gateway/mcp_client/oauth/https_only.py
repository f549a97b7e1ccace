"""Restricts OAuth requests to addresses that a protected server may legitimately name."""

from urllib.parse import urlsplit

import httpx2

from gateway.common.concurrency import Deadline
from gateway.mcp_client.oauth.address_policy import CheckedHttpTransport
from gateway.mcp_client.oauth.errors import InsecureUrl
from gateway.mcp_client.size_limit import TOO_LARGE, SizeLimitingTransport
from gateway.ports.servers import ServerConfig

INSUFFICIENT_SCOPE = "insufficient_scope"
REQUEST_TIMEOUT_SECONDS = 15.0
"""Time limit of a request and its whole answer."""
_MAX_ANSWER_BYTES = 1024 * 1024
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}
_BODY_HEADERS = ("content-encoding", "content-length", "transfer-encoding")


class HttpsOnlyTransport(httpx2.AsyncBaseTransport):
    """Sends requests only to https, or to the server's own host.

    `AddressPolicy` must permit the address. Reads each answer whole, within a total time limit, except the server's
    own, which may be an endless stream. With `probing` the first request is answered as if the server had refused it,
    since a server need not refuse every request: with `challenge` if that is known, else with the challenge in the
    server's answer to this request. The entry's scope replaces the one of a 401; a 403 extends it.
    """

    def __init__(self, server: ServerConfig, challenge: str | None = None, *, probing: bool = False) -> None:
        self._inner = SizeLimitingTransport(CheckedHttpTransport(server), _MAX_ANSWER_BYTES, httpx2.ReadError)
        self._server_url = server.url
        self._challenge = challenge
        self._scope = server.oauth.scope if server.oauth is not None else None
        self._is_probing = probing

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not is_permitted_url(str(request.url), self._server_url):
            raise InsecureUrl("the server names an authorization server that is not at an https:// address")
        if not self._is_probing:
            return await self._send(request)
        self._is_probing = False
        challenge = self._challenge
        if challenge is None:
            response = await self._send(request)
            await response.aclose()
            challenge = response.headers.get("WWW-Authenticate", "")
        status = 403 if INSUFFICIENT_SCOPE in challenge else 401
        if self._scope and status == 401:
            challenge = f'Bearer scope="{self._scope}", {challenge}'  # the SDK takes the first scope that it finds
        return httpx2.Response(status, request=request, headers={"WWW-Authenticate": challenge} if challenge else None)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            async with Deadline.after(REQUEST_TIMEOUT_SECONDS).limit():
                response = await self._inner.handle_async_request(request)
                return response if request.url == self._server_url else await _read_answer(response)
        except TimeoutError:
            raise httpx2.ReadTimeout("the answer does not arrive in time", request=request) from None

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _read_answer(response: httpx2.Response) -> httpx2.Response:
    """Read a body of limited size.

    Raises:
        httpx2.ReadError: the body is too large.
    """
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES:
                raise httpx2.ReadError(TOO_LARGE)
    finally:
        await response.aclose()
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _BODY_HEADERS]
    return httpx2.Response(response.status_code, headers=headers, content=bytes(body))


def is_permitted_url(url: str, server_url: str) -> bool:
    """Whether a URL is https, or http on the server's own host.

    All loopback addresses count as one host. A user or password disguises the host, unless the server's URL has it too.
    """
    parts, server = urlsplit(url), urlsplit(server_url)
    if "@" in parts.netloc and parts.netloc != server.netloc:
        return False
    is_loopback = {parts.hostname, server.hostname} <= _LOOPBACK_HOSTS
    return parts.scheme == "https" or (parts.scheme == "http" and (is_loopback or parts.hostname == server.hostname))
