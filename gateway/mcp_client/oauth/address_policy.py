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

from gateway.mcp_client.http_transport import get_ssl_context
from gateway.mcp_client.oauth.errors import InsecureUrl
from gateway.ports.servers import ServerConfig
from gateway_runtime.public_addresses import is_public

_MAX_CONNECT_SECONDS = 5.0
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
        self._hosts: set[str] = set()
        self._addresses: set[tuple[str, int]] = set()
        if not server.added_at_run_time:
            self._hosts = {host, *(name.lower() for name in server.oauth_hosts)}
        elif host == "localhost" or _is_address(host):
            self._addresses = {(host, port)}

    def permits(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `host` may go to a resolved address."""
        host = host.lower()
        if host in self._hosts or (host, port) in self._addresses:
            return True
        return is_public(ipaddress.ip_address(address.partition("%")[0]), port)


class CheckedHttpTransport(httpx2.AsyncHTTPTransport):
    """HTTP that checks each resolved address right before it connects to it.

    A changed DNS entry or a redirect thus cannot bypass the policy.
    """

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
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        permitted = [address for address in addresses if self._policy.permits(host, port, address)]
        if not permitted:
            raise InsecureUrl(
                "the server names an address inside the gateway's network, which only `oauth_hosts` may permit"
            )
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


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
