"""Addresses of PostgreSQL, in libpq's form: `postgresql://user:password@host:port,host:port/database?name=value`."""

import re
from urllib.parse import parse_qsl, quote, urlencode

__all__ = ["list_hosts", "list_parameters", "mask_password", "plain_dsn"]

_ADDRESS = re.compile(r"(?P<scheme>[a-z+]+)://(?P<netloc>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*)(?::(?P<port>\d*))?")
_SCHEMES = ("postgres", "postgresql")
_REPEATABLE = ("host", "port")
"""Parameters that SQLAlchemy repeats for each host, and libpq lists with commas."""


def plain_dsn(url: str) -> str:
    """Return the address for asyncpg of an address for asyncpg or SQLAlchemy.

    Raises:
        ValueError: it is not an address of PostgreSQL.
    """
    address = _parse(url)
    query: dict[str, str] = {}
    for name, value in parse_qsl(address["query"] or "", keep_blank_values=True):
        name = "sslmode" if name == "ssl" else name
        query[name] = f"{query[name]},{value}" if name in query and name in _REPEATABLE else value
    suffix = f"?{urlencode(query, quote_via=quote, safe='/:,[]')}" if query else ""
    return f"postgresql://{address['netloc']}{address['path'] or '/'}{suffix}"


def list_hosts(url: str) -> list[tuple[str, int | None]]:
    """List host names or socket directories, each with its port or None.

    Raises:
        ValueError: it is not an address of PostgreSQL.
    """
    dsn = plain_dsn(url)
    parameters = list_parameters(dsn)
    in_netloc = _parse(dsn)["netloc"].rpartition("@")[2]
    hosts = [_parse_host(text) for text in (in_netloc or parameters.get("host", "")).split(",")]
    ports = [int(port) if port else None for port in parameters.get("port", "").split(",")]
    if len(ports) == 1:
        ports *= len(hosts)
    return [(host, port or default) for (host, port), default in zip(hosts, ports, strict=True)]


def list_parameters(dsn: str) -> dict[str, str]:
    """Return the parameters after the question mark."""
    return dict(parse_qsl(_parse(dsn)["query"] or ""))


def mask_password(url: str) -> str:
    """Return the address with `***` instead of a password."""
    masked = re.sub(r"(://[^:@/?#]*):[^/?#]*@", r"\1:***@", url)
    return re.sub(r"([?&]password=)[^&#]*", r"\1***", masked)


def _parse(url: str) -> dict[str, str]:
    match = _ADDRESS.fullmatch(url)
    if match is None or match["scheme"].split("+")[0] not in _SCHEMES:
        raise ValueError("not an address of PostgreSQL")
    return match.groupdict()


def _parse_host(text: str) -> tuple[str, int | None]:
    if text.startswith("/"):
        return text, None
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("a host of PostgreSQL's address cannot be read")
    return match["host"].strip("[]"), int(match["port"]) if match["port"] else None
