"""The administrator's list of private addresses for defined tools."""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from gateway_runtime.public_addresses import PUBLIC_PORTS, Address, is_public

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_ENTRY = re.compile(r"(\[[^\]]+\](?:/\d+)?|[^:\[\]]+)(?::(\d{1,5}|\*))?|([0-9a-fA-F:.]+(?:/\d+)?)")


class PrivateTarget(NamedTuple):
    """An address range or a host name, and its ports."""

    network: _Network | None
    host: str | None
    ports: tuple[int, ...] | None

    def allows(self, host: str, address: Address, port: int) -> bool:
        """Return whether `host` may be reached at this address."""
        if self.ports is not None and port not in self.ports:
            return False
        if self.network is None:
            return host == self.host
        unmapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any(candidate in self.network for candidate in (address, unmapped) if candidate is not None)


def parse_private_target(text: str) -> PrivateTarget:
    """Parse `10.0.0.0/8`, `127.0.0.1:9000`, `[fd00::1]:443`, `billing.internal:8080` or `…:*`.

    Without a port, it is a web server's: 80, 443, 8080 or 8443.

    Raises:
        ValueError: it is neither an address nor a range nor a host name.
    """
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:100]} is not an address, a range or a host name, with or without a port")
    name, port = (match[1] or match[3]).lower(), match[2]
    ports = None if port == "*" else PUBLIC_PORTS if port is None else (int(port),)
    try:
        return PrivateTarget(ipaddress.ip_network(name.replace("[", "").replace("]", "")), None, ports)
    except ValueError:
        if "/" in name or not _HOST.fullmatch(name) or name.replace(".", "").isdigit():
            raise ValueError(f"{text[:100]} is not an address, a range such as 10.0.0.0/8, or a host name") from None
    return PrivateTarget(None, name.rstrip("."), ports)


class TargetPolicy:
    """Which addresses defined tools may connect to."""

    def __init__(self, private_targets: Iterable[str] = ()) -> None:
        self._targets = [parse_private_target(text) for text in private_targets]

    def allows(self, host: str, address: Address, port: int) -> bool:
        """Return whether a request to `host` may use this address."""
        name = host.lower().rstrip(".")
        return is_public(address, port) or any(target.allows(name, address, port) for target in self._targets)
