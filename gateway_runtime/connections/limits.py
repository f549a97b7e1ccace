"""Limits on open connections, in total and by source."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from gateway_runtime.connections.slow_readers import UnsentBytes
from gateway_runtime.public_addresses import extract_embedded_ipv4

MAX_CONNECTIONS = 10_000
MAX_SOURCE_CONNECTIONS = 1_000
TRUSTED_SOURCE = "trusted"
"""Source of all connections of the administrator's proxies."""
UNKNOWN_SOURCE = "unknown"
_IPV6_PREFIX_BITS = 64
_MAX_ADDRESS_LENGTH = 64


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
        self.unsent = UnsentBytes()

    def find_source(self, host: str | None) -> str:
        """Return the source of a connection from an address."""
        return TRUSTED_SOURCE if self._is_trusted(host or "") else get_connection_source(host)

    def find_excess(self, source: str) -> str | None:
        """Return the exceeded limit: `source`, `total` or None."""
        if self._total >= self._max_total:
            return "total"
        return "source" if self._counts[source] >= self._max_per_source and source != TRUSTED_SOURCE else None

    def add(self, source: str) -> None:
        """Count a connection until `remove` is called."""
        self._total += 1
        self._counts[source] += 1

    def remove(self, source: str) -> None:
        self._total -= 1
        self._counts[source] -= 1
        if not self._counts[source]:
            del self._counts[source]

    def _is_trusted(self, host: str) -> bool:
        if not self._trusted or not _is_network(host):
            return False
        address = ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any((mapped or address) in network for network in self._trusted)


def get_connection_source(host: str | None) -> str:
    """Return the source that an address belongs to, in canonical form.

    An IPv6 address becomes its /64, which one host can use as a whole, or the IPv4 address in it. A missing or invalid
    address, for example in a forged `X-Forwarded-For`, becomes "unknown": otherwise a client could evade a limit with
    another value in each request.
    """
    address = (host or "").partition("%")[0]
    return _normalize_address(address) if len(address) <= _MAX_ADDRESS_LENGTH else UNKNOWN_SOURCE


@lru_cache(maxsize=1024)
def _normalize_address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return UNKNOWN_SOURCE
    if isinstance(address, IPv6Address):
        embedded = extract_embedded_ipv4(address)
        return str(embedded or ip_network((address, _IPV6_PREFIX_BITS), strict=False))
    return str(address)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
