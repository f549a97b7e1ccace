"""Restricts OAuth requests to addresses that a protected server may legitimately name."""

from urllib.parse import urlsplit

import httpx2

from gateway.mcp_client.http_transport import get_ssl_context
from gateway.mcp_client.size_limit import SizeLimitingTransport

INSUFFICIENT_SCOPE = "insufficient_scope"
_MAX_ANSWER_BYTES = 1024 * 1024
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}


class InsecureUrl(Exception):
    """A server names an address that the gateway refuses to use.

    `str()` is for the person who signs in.
    """


class HttpsOnlyTransport(httpx2.AsyncBaseTransport):
    """Sends requests only to https, or to the server's own host.

    With `probing` the first request is answered as if the server had refused it, since a server need not refuse every
    request: with `challenge` if that is known, else with the challenge in the server's answer to this request.
    """

    def __init__(self, server_url: str, challenge: str | None = None, *, probing: bool = False) -> None:
        http_transport = httpx2.AsyncHTTPTransport(verify=get_ssl_context())
        self._inner = SizeLimitingTransport(http_transport, _MAX_ANSWER_BYTES, httpx2.ReadError)
        self._server_url = server_url
        self._challenge = challenge
        self._is_probing = probing

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not is_permitted_url(str(request.url), self._server_url):
            raise InsecureUrl("the server names an authorization server that is not at an https:// address")
        if not self._is_probing:
            return await self._inner.handle_async_request(request)
        self._is_probing = False
        challenge = self._challenge
        if challenge is None:
            response = await self._inner.handle_async_request(request)
            await response.aclose()
            challenge = response.headers.get("WWW-Authenticate", "")
        status = 403 if INSUFFICIENT_SCOPE in challenge else 401
        return httpx2.Response(status, request=request, headers={"WWW-Authenticate": challenge} if challenge else None)

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_permitted_url(url: str, server_url: str) -> bool:
    """Whether a URL is https, or http on the server's own host.

    All loopback addresses count as one host.
    """
    parts, server = urlsplit(url), urlsplit(server_url)
    is_loopback = {parts.hostname, server.hostname} <= _LOOPBACK_HOSTS
    return parts.scheme == "https" or (parts.scheme == "http" and (is_loopback or parts.hostname == server.hostname))
