"""Addresses on the public internet.

Tool calls, and what MCP servers name, may make a server connect to no others.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PUBLIC_PORTS = (80, 443, 8080, 8443)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(block)
    for block in (
        # The special-purpose registries of IANA. Python's `ipaddress` knows most of them, but each version knows other
        # ones, and it counts anycast addresses for relays as global.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by customers of a provider; clouds have metadata services in it
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",
        "192.31.196.0/24",  # AS112, which answers names of private addresses
        "192.52.193.0/24",  # multicast tunnels (AMT)
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # protocol assignments: Teredo, ORCHID, AMT, AS112, benchmarks
        "2001:db8::/32",
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
        # Not in a registry:
        "168.63.129.16/32",  # Azure's platform service, in each virtual machine
    )
)


def is_public(address: Address, port: int) -> bool:
    """Return whether a stranger may cause a connection to an address.

    The address must be globally reachable, and the port a web server's.
    """
    return port in PUBLIC_PORTS and _is_global_address(address)


def _is_global_address(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if (embedded := extract_embedded_ipv4(address)) is not None:
            return _is_global_address(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    if address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback:
        return False
    return address.is_global and not any(address in block for block in _NOT_PUBLIC if block.version == address.version)


def extract_embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address in a mapped, 6to4 or NAT64 address.

    Teredo addresses are refused as a whole: they lead to a relay that anybody may run.
    """
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
