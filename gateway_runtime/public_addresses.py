"""Addresses on the public internet.

Tool calls, and what MCP servers name, may make a server connect to no others.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PUBLIC_PORTS = (80, 443, 8080, 8443)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(block)
    for block in (
        "64:ff9b:1::/48",  # local-use NAT64
        "192.88.99.0/24",  # 6to4 relays
        "fec0::/10",  # deprecated site-local
        "::/96",  # IPv4-compatible
    )
)


def is_public(address: Address, port: int) -> bool:
    """Return whether a stranger may cause a connection to an address.

    The address must be globally reachable, and the port a web server's.
    """
    return port in PUBLIC_PORTS and _is_global_address(address)


def _is_global_address(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (embedded := _extract_embedded_ipv4(address)) is not None:
        return _is_global_address(embedded)
    if address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback:
        return False
    return address.is_global and not any(address in block for block in _NOT_PUBLIC if block.version == address.version)


def _extract_embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address in a mapped, 6to4, Teredo or NAT64 address."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
