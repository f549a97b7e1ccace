"""Limits on open connections, in total and by source."""

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

MAX_CONNECTIONS = 10_000
MAX_SOURCE_CONNECTIONS = 1_000
_IPV6_PREFIX_BITS = 64


class ConnectionLimits:
    """Counts open connections.

    Sources in the networks `trusted`, the proxies of the administrator, count only in total.
    """

    def __init__(
        self,
        max_total: int = MAX_CONNECTIONS,
        max_per_source: int = MAX_SOURCE_CONNECTIONS,
        trusted: Iterable[str] = (),
    ) -> None:
        self._max_total = max_total
        self._max_per_source = max_per_source
        self._trusted = [ip_network(network, strict=False) for network in trusted if _is_network(network)]
        self._counts: Counter[str] = Counter()
        self._total = 0

    def find_excess(self, source: str) -> str | None:
        """Return the exceeded limit: `source`, `total` or None."""
        if self._total >= self._max_total:
            return "total"
        return "source" if self._counts[source] >= self._max_per_source and not self._is_trusted(source) else None

    def add(self, source: str) -> None:
        """Count a connection until `remove` is called."""
        self._total += 1
        self._counts[source] += 1

    def remove(self, source: str) -> None:
        self._total -= 1
        self._counts[source] -= 1
        if not self._counts[source]:
            del self._counts[source]

    def _is_trusted(self, source: str) -> bool:
        if not self._trusted:
            return False
        network = ip_network(source) if _is_network(source) else None
        return network is not None and any(network.network_address in trusted for trusted in self._trusted)


def get_connection_source(host: str | None) -> str:
    """Return an address, or the /64 of an IPv6 address."""
    try:
        address = ip_address((host or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, _IPV6_PREFIX_BITS), strict=False))
    return str(address)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
