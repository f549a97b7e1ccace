"""Addresses of PostgreSQL as people write them, for asyncpg and SQLAlchemy.

`parse_address` is the only reader. It accepts the addresses of libpq, SQLAlchemy, Prisma, JDBC and node-postgres, and
passwords whose special characters are not percent-encoded, where they can be told from the rest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import quote, unquote

from gateway_runtime.postgres.parameters import (
    CONNECTION_PARAMETERS,
    POOLED,
    join_options,
    translate_parameters,
)

__all__ = [
    "PostgresAddress",
    "build_url",
    "list_hosts",
    "list_parameters",
    "mask_password",
    "normalize_url",
    "parse_address",
    "plain_dsn",
]

Host = tuple[str, int | None]
_SCHEMES = ("postgres", "postgresql")
_DRIVER_SCHEME = "postgresql+asyncpg"
_NOT_AN_ADDRESS = "must be a PostgreSQL URL such as postgresql://user:password@host:5432/database"
_DECORATION = re.compile(r"(?:psql\s+)?(?P<quote>['\"]?)(?:jdbc:)?(?P<url>.*?)(?P=quote)", re.DOTALL)
_LOCATION = re.compile(
    r"(?P<hosts>(?:\[[^\]/?#@\s]*\]|[^/?#@\s\[\]])*)(?:/(?P<database>[^/?#@]*)/?)?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*)(?::(?P<port>\d{0,5}))?")
_MAX_PORT = 65_535
_DEFAULT_PORT = 5432
_OWN_PARAMETERS = ("connect_timeout", POOLED)


@dataclass(frozen=True)
class PostgresAddress:
    """A parsed address. `parameters` have the names and values of libpq."""

    hosts: tuple[Host, ...]
    """Names, addresses or socket directories, each with its port or None."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    parameters: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def is_pooled(self) -> bool:
        """Whether each transaction may run on another connection to the server."""
        return POOLED in self.parameters

    @property
    def connect_timeout(self) -> float | None:
        """Seconds for a login; None: the address does not say."""
        seconds = self.parameters.get("connect_timeout")
        return None if seconds is None else float(seconds)

    @property
    def session_settings(self) -> dict[str, str]:
        """Settings of PostgreSQL for each session."""
        return {name: value for name, value in self.parameters.items() if name not in CONNECTION_PARAMETERS}

    def to_url(self) -> str:
        """Return the address for SQLAlchemy.

        `parse_address` reads it without a loss.
        """
        return self._format(_DRIVER_SCHEME, join_options(self.parameters))

    def to_dsn(self) -> str:
        """Return the address for asyncpg."""
        others = {name: value for name, value in self.parameters.items() if name not in _OWN_PARAMETERS}
        return self._format("postgresql", others)

    def to_login_dsn(self) -> str:
        """Return the address of one login for asyncpg.

        Without settings of the session, most of which PgBouncer refuses, and without several hosts, of which the caller
        chooses one.
        """
        kept = (CONNECTION_PARAMETERS | {"application_name"}) - set(_OWN_PARAMETERS)
        parameters = {name: value for name, value in self.parameters.items() if name in kept}
        one = self if len(self.hosts) == 1 else replace(self, hosts=())
        return one._format("postgresql", parameters)

    def _format(self, scheme: str, parameters: dict[str, str]) -> str:
        user = quote(self.user, safe="") if self.user is not None else ""
        password = f":{quote(self.password, safe='')}" if self.password is not None else ""
        identity = f"{user}{password}@" if user or password else ""
        if any(_is_directory(host) for host, _ in self.hosts):
            netloc, parameters = "", _build_host_parameters(self.hosts) | parameters
            identity = identity or "@"
        else:
            netloc = ",".join(_format_host(host, port) for host, port in self.hosts)
        query = "&".join(f"{name}={quote(value, safe='/:,[]')}" for name, value in parameters.items())
        database = quote(self.database, safe="") if self.database is not None else ""
        return f"{scheme}://{identity}{netloc}/{database}{f'?{query}' if query else ''}"


def parse_address(text: str) -> PostgresAddress:
    """Parse an address.

    A password that contains `@` itself is taken literally, any other one is percent-decoded.

    Raises:
        ValueError: it is not an address of PostgreSQL, or a parameter cannot be used. The message has no part of a
            password.
    """
    match = _DECORATION.fullmatch(text.strip())
    scheme, separator, rest = (match["url"] if match else "").partition("://")
    if not separator or scheme.lower().split("+")[0] not in _SCHEMES:
        raise ValueError(_NOT_AN_ADDRESS)
    userinfo, location = _split_userinfo(rest)
    pairs = _split_query(location["query"] or "")
    parameters = translate_parameters(pairs, names_are_safe="@" not in (location["query"] or ""))
    user, password = _parse_userinfo(userinfo)
    named_hosts = parameters.pop("host", "") or parameters.get("hostaddr", "")
    texts = location["hosts"].split(",") if location["hosts"] else map(_add_brackets, named_hosts.split(","))
    hosts = _parse_hosts(list(texts), _parse_ports(parameters.pop("port", "")))
    parameters.pop("hostaddr", None)
    database = unquote(location["database"] or "")
    named_user, named_password, named_database = (parameters.pop(name, None) for name in ("user", "password", "dbname"))
    return PostgresAddress(
        hosts=hosts,
        user=user or named_user,
        password=password if password is not None else named_password,
        database=database or named_database,
        parameters=parameters,
    )


def normalize_url(text: str, *, pooled: bool = False) -> str:
    """Return the address for SQLAlchemy, in one form.

    `pooled`: the address leads to a pooler in transaction mode.

    Raises:
        ValueError: see `parse_address`.
    """
    url = parse_address(text).to_url()
    if pooled and not parse_address(url).is_pooled:
        url = f"{url}{'&' if '?' in url else '?'}{POOLED}=true"
    return url


def build_url(hosts: str, port: int, *, user: str, password: str | None, database: str) -> str:
    """Return the address for SQLAlchemy of single settings.

    `hosts`: names, addresses or socket directories, separated by commas; IPv6 with or without brackets. A host may have
    a port of its own.

    Raises:
        ValueError: a host cannot be read.
    """
    parsed = _parse_hosts([_add_brackets(host.strip()) for host in hosts.split(",") if host.strip()], [port])
    return PostgresAddress(hosts=parsed, user=user, password=password, database=database).to_url()


def plain_dsn(url: str) -> str:
    """Return the address for asyncpg of any address.

    Raises:
        ValueError: see `parse_address`.
    """
    return parse_address(url).to_dsn()


def list_hosts(url: str) -> list[Host]:
    """List host names or socket directories, each with its port or None.

    Raises:
        ValueError: see `parse_address`.
    """
    return list(parse_address(url).hosts)


def list_parameters(url: str) -> dict[str, str]:
    """Return the parameters of the connection and the settings of its sessions.

    Raises:
        ValueError: see `parse_address`.
    """
    return parse_address(url).parameters


def mask_password(url: str) -> str:
    """Return the address without its password and parameters."""
    try:
        address = parse_address(url)
    except ValueError:
        return "postgresql://***"
    hosts = ",".join(_format_host(host, port) for host, port in address.hosts)
    user = f"{address.user or ''}{':***' if address.password is not None else ''}"
    return f"postgresql://{f'{user}@' if user else ''}{hosts}/{address.database or ''}"


def _split_userinfo(rest: str) -> tuple[str, re.Match[str]]:
    """Split an address without its scheme into user and location.

    The text up to the first `/` or `?` is read as the standard says. Where that leaves no valid location, a password
    has unescaped characters, and ends at the last `@`.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, _, hosts = authority.rpartition("@")
    location = _match_location(hosts + rest[len(authority) :])
    if location is not None:
        return userinfo, location
    userinfo, separator, remainder = rest.rpartition("@")
    location = _match_location(remainder)
    user, has_password, _ = userinfo.partition(":")
    if not separator or not has_password or location is None or re.search(r"[/?#\s]", user):
        raise ValueError(f"{_NOT_AN_ADDRESS}; in the password, write @ as %40, / as %2F, ? as %3F, # as %23")
    return userinfo, location


def _match_location(text: str) -> re.Match[str] | None:
    location = _LOCATION.fullmatch(text)
    if location is None or not all("=" in pair for pair in (location["query"] or "=").split("&") if pair):
        return None
    try:
        _parse_hosts(location["hosts"].split(","), [None])
    except ValueError:
        return None
    return location


def _parse_userinfo(userinfo: str) -> tuple[str | None, str | None]:
    user, separator, password = userinfo.partition(":")
    if not separator and not user:
        return None, None
    decoded = password if "@" in password else unquote(password)
    return unquote(user) or None, decoded if separator else None


def _split_query(query: str) -> list[tuple[str, str]]:
    """Split and decode parameters. A plus sign is one, as in libpq."""
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


def _parse_ports(text: str) -> list[int | None]:
    ports = text.split(",")
    if not all(not port or (port.isdigit() and int(port) <= _MAX_PORT) for port in ports):
        raise ValueError("parameter port must be a number of a port")
    return [int(port) if port else None for port in ports]


def _parse_hosts(texts: Sequence[str], ports: Sequence[int | None]) -> tuple[Host, ...]:
    """Parse hosts, with `ports` for those that name none.

    There is one port for all, or one for each.
    """
    defaults = [*ports] * len(texts) if len(ports) == 1 else [*ports]
    if len(defaults) != len(texts):
        raise ValueError("the list of ports is longer or shorter than the list of hosts of PostgreSQL")
    hosts = map(_parse_host, texts)
    return tuple((host, port or default) for (host, port), default in zip(hosts, defaults, strict=True))


def _parse_host(text: str) -> Host:
    if _is_directory(text):
        return _to_absolute(text), None
    match = _HOST.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port or 0) > _MAX_PORT:
        raise ValueError("a host of PostgreSQL's address cannot be read")
    host = unquote(match["host"]).strip("[]")
    return _to_absolute(host) if _is_directory(host) else host, port


def _is_directory(host: str) -> bool:
    return host.startswith(("/", "./", "../", "~/"))


def _to_absolute(directory: str) -> str:
    return directory if directory.startswith("/") else str(Path(directory).expanduser().absolute())


def _add_brackets(host: str) -> str:
    """Put an IPv6 address into brackets."""
    try:
        return f"[{IPv6Address(host)}]"
    except ValueError:
        return host


def _format_host(host: str, port: int | None) -> str:
    name = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="/-._~")
    return name if port is None else f"{name}:{port}"


def _build_host_parameters(hosts: tuple[Host, ...]) -> dict[str, str]:
    """Build `host` and `port`, where a host is a directory."""
    parameters = {"host": ",".join(f"[{host}]" if ":" in host else host for host, _ in hosts)}
    if any(port is not None for _, port in hosts):
        parameters["port"] = ",".join(str(port or _DEFAULT_PORT) for _, port in hosts)
    return parameters
