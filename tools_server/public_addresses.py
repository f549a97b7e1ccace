"""Which addresses are public: what a stranger may make this server connect to."""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PUBLIC_PORTS = (80, 443, 8080, 8443)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(block)
    for block in (
        "64:ff9b:1::/48",  # NAT64 of somebody's own
        "192.88.99.0/24",  # relays of 6to4
        "fec0::/10",  # site-local, as it was
        "::/96",  # IPv4-compatible
    )
)


def is_public(address: Address, port: int) -> bool:
    """Whether anyone on the internet could ask there, so that asking for a stranger gives nothing away."""
    return port in PUBLIC_PORTS and _is_global_address(address)


def _is_global_address(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (inside := _embedded_ipv4(address)) is not None:
        return _is_global_address(inside)
    if address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback:
        return False
    return address.is_global and not any(address in block for block in _NOT_PUBLIC if block.version == address.version)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4, Teredo, NAT64."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
