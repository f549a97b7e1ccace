"""Limits the addresses that the OAuth requests of a server connect to.

The server itself names most of these addresses, so they could lead into the gateway's own network.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import httpcore2
import httpx2

from gateway.mcp_client.http.proxy import find_proxy
from gateway.mcp_client.http_transport import get_ssl_context
from gateway.mcp_client.oauth.errors import InsecureUrl
from gateway.ports.servers import ServerConfig
from gateway_runtime.public_addresses import is_public

_MAX_CONNECT_SECONDS = 5.0
_INTERNAL_ADDRESS = "the server names an address inside the gateway's network, which only `oauth_hosts` may permit"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class AddressPolicy:
    """Decides which addresses a server's OAuth requests may connect to.

    Public ones, as for the tool `fetch_page`. Those of a server in the administrator's file also may go to its own host
    and to its `oauth_hosts`, which may be internal; those of a server added at run time only to its own address, if
    that names no host that could resolve to another address later.
    """

    def __init__(self, server: ServerConfig) -> None:
        url = urlsplit(server.url)
        host, port = (url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        self._needs_known_addresses = server.added_at_run_time
        self._hosts: set[str] = set()
        self._addresses: set[tuple[str, int]] = set()
        if not server.added_at_run_time:
            self._hosts = {host, *(name.lower() for name in server.oauth_hosts)}
        elif host == "localhost" or _is_address(host):
            self._addresses = {(host, port)}

    def permits(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `host` may go to a resolved address."""
        return self._is_own(host, port) or is_public(ipaddress.ip_address(address.partition("%")[0]), port)

    async def check_proxied(self, host: str, port: int) -> None:
        """Check a host that a proxy will resolve.

        A host of a server in the administrator's file need not resolve here: some networks have names at the proxy
        only.

        Raises:
            InsecureUrl: the policy does not permit all of the host's addresses.
        """
        if self._is_own(host, port):
            return
        try:
            addresses = await _resolve(host, port)
        except httpcore2.ConnectError:
            if self._needs_known_addresses:
                raise InsecureUrl(f"the gateway cannot resolve the server's host {host[:100]!r}") from None
            return
        if not all(self.permits(host, port, address) for address in addresses):
            raise InsecureUrl(_INTERNAL_ADDRESS)

    def _is_own(self, host: str, port: int) -> bool:
        return host.lower() in self._hosts or (host.lower(), port) in self._addresses


class CheckedHttpTransport(httpx2.AsyncBaseTransport):
    """HTTP that checks each resolved address right before it connects to it.

    A changed DNS entry or a redirect thus cannot bypass the policy. With a proxy of the environment, the addresses that
    the gateway finds are checked before the proxy is asked.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._policy = AddressPolicy(server)
        self._uses_proxy = server.proxy
        self._direct = _DirectTransport(self._policy)
        self._proxied: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        proxy = find_proxy(str(url)) if self._uses_proxy else None
        if proxy is None:
            return await self._direct.handle_async_request(request)
        await self._policy.check_proxied(url.host, url.port or _DEFAULT_PORTS.get(url.scheme, 0))
        if proxy not in self._proxied:
            self._proxied[proxy] = httpx2.AsyncHTTPTransport(verify=get_ssl_context(), proxy=proxy)
        return await self._proxied[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()


class _DirectTransport(httpx2.AsyncHTTPTransport):
    """HTTP without a proxy."""

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__(verify=get_ssl_context())
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=get_ssl_context(), network_backend=_CheckedBackend(policy)
        )


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects only to addresses that the policy permits."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._inner: httpcore2.AsyncNetworkBackend = httpcore2.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue] - a stand-in without anyio

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first permitted address that accepts.

        Raises:
            InsecureUrl: the policy permits none of the host's addresses.
        """
        permitted = [address for address in await _resolve(host, port) if self._policy.permits(host, port, address)]
        if not permitted:
            raise InsecureUrl(_INTERNAL_ADDRESS)
        error: Exception | None = None
        for address in permitted:
            try:
                return await self._inner.connect_tcp(
                    address,
                    port,
                    min(timeout or _MAX_CONNECT_SECONDS, _MAX_CONNECT_SECONDS),
                    local_address,
                    socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as failure:
                error = failure
        assert error is not None
        raise error

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        httpcore2.ConnectError: it has none.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
