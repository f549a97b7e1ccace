"""HTTP sessions that connect only to allowed addresses."""

import ipaddress
import socket
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp.abc import AbstractCookieJar, AbstractResolver

from gateway_runtime.public_addresses import Address

AddressCheck = Callable[[Address, int], bool]


class _AddressNotPublic(OSError):
    """The connection would have gone to an address that is not allowed."""


def create_guarded_session(
    is_allowed: AddressCheck,
    resolver: AbstractResolver,
    *,
    total_seconds: float,
    read_seconds: float | None = None,
    headers: Mapping[str, str] | None = None,
    cookie_jar: AbstractCookieJar | None = None,
) -> aiohttp.ClientSession:
    """Create a session whose connections `is_allowed` accepts.

    It gets the address and port of each connection before it is opened, so a changed DNS entry or a redirect cannot
    bypass it. Without a jar, aiohttp keeps cookies for the session.
    """

    def create_socket(address_info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        """Create the socket for one resolved address, which aiohttp connects next."""
        family, kind, protocol, _, address = address_info
        host, port = str(address[0]), int(address[1])
        if not is_allowed(ipaddress.ip_address(host.split("%", 1)[0]), port):
            raise _AddressNotPublic("not public")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        socket_factory=create_socket, resolver=resolver, use_dns_cache=False, limit=8, force_close=True
    )
    return aiohttp.ClientSession(
        connector=connector,
        trust_env=False,  # a proxy would connect to addresses that are not checked here
        cookie_jar=cookie_jar,
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=total_seconds, connect=5, sock_read=read_seconds),
    )


def describe_transport_error(error: Exception) -> str:
    """Describe an error of a request for the model, without addresses."""
    match error:
        case TimeoutError():
            return "it did not arrive in time"
        case aiohttp.ClientConnectorDNSError():
            return "its host name is not known, or there is no network"
        case aiohttp.ClientConnectorError():
            # After attempts at several addresses, asyncio joins their errors in one text.
            if isinstance(error.os_error, _AddressNotPublic) or "not public" in str(error.os_error):
                return "its address is not public, or its port is not a web server's"
            return "its server cannot be reached"
        case aiohttp.InvalidURL() | ValueError():
            return "this is not a web address"
        case _:
            return "its server did not answer properly"
