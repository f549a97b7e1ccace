"""Host names and origins in settings, as clients send them."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from urllib.parse import SplitResult, urlsplit

__all__ = ["find_bind_host", "is_host_allowed", "normalize_host_pattern", "normalize_origin", "split_list"]

_HOST_PATTERN = re.compile(r"\*|[a-z0-9_*?-]+(\.[a-z0-9_*?-]+)*")
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::([0-9]{0,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_MAX_PORT = 65_535
_DEFAULT_PORTS = {"http": 80, "https": 443}

UNKNOWN_HOST = "name-of-a-stranger.invalid"
"""A name that only a pattern of any name matches."""


def find_bind_host(bind: str) -> str:
    """Return the host at which a container's port is published.

    A port alone is published at all addresses.
    """
    return bind.rpartition(":")[0].strip("[]") or "0.0.0.0"  # noqa: S104


def split_list(value: object) -> object:
    """Split a setting at its commas, or decode a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            decoded = json.loads(value)
        except ValueError:
            pass  # for example an IPv6 address
        else:
            return tuple(str(part).strip() for part in decoded)
    return tuple(part.strip() for part in value.split(",") if part.strip())


def normalize_origin(text: str, *, any_port: bool = False) -> str:
    """Return an origin as browsers send it.

    That is in lower case, and without a default port. `any_port`: its port may be `*`.

    Raises:
        ValueError: it is not an origin.
    """
    if text in ("*", "null"):
        return text
    suffix = ":*" if any_port and text.rstrip("/").endswith(":*") else ""
    parts = _split_url(text.rstrip("/").removesuffix(suffix), text)
    if "*" in parts.netloc:
        raise ValueError(f"{text} has a wildcard: list each origin")
    host, port = _parse_netloc(parts, text)
    if port is None or port == _DEFAULT_PORTS.get(parts.scheme):
        return f"{parts.scheme}://{host}{suffix}"
    return f"{parts.scheme}://{host}:{port}"


def normalize_host_pattern(text: str, *, keep_port: bool = False) -> str:
    """Return a pattern for Host headers.

    It is in lower case, without a scheme, and without a port unless `keep_port` is set.

    Raises:
        ValueError: it is neither a host name nor an address nor a pattern.
    """
    name = text.strip()
    if "://" in name:
        name = _split_url(name, text).netloc
    name = name.rstrip("/")
    if re.search(r"[/@#\\]", name):
        raise ValueError(f"{_mask_userinfo(text)} is not a host name such as gateway.example.com or *.example.com")
    if ":" in name and not name.startswith("["):
        with suppress(ValueError):
            name = f"[{IPv6Address(name)}]"
    any_port = keep_port and name.endswith(":*")
    host, port = _parse_netloc(urlsplit(f"//{name.removesuffix(':*') if any_port else name}"), text)
    host = host.rstrip(".")
    if not host.startswith("[") and not _HOST_PATTERN.fullmatch(host):
        hint = f": write *{host}" if host.startswith(".") else ""
        raise ValueError(f"{text} is not a host name such as gateway.example.com or *.example.com{hint}")
    if not keep_port or (port is None and not any_port):
        return host
    return f"{host}:{'*' if any_port else port}"


def is_host_allowed(header: str, patterns: Iterable[str]) -> bool:
    """Return whether a request's Host header matches a pattern.

    Letter case, the dot of a complete name and the spelling of an IPv6 address do not count. A pattern without a port
    matches any.
    """
    match = _HOST_HEADER.fullmatch(header.strip(" \t").lower())
    if match is None:
        return False
    host, port = match[1], match[2] or ""
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return False
    if port and int(port) > _MAX_PORT:
        return False
    escaped = [pattern.replace("[", "[[]") for pattern in patterns]  # brackets of IPv6 addresses
    return any(fnmatchcase(name, pattern) for name in (host, f"{host}:{port}") for pattern in escaped)


def _mask_userinfo(text: str) -> str:
    return re.sub(r"[^/]*@", "***@", text)


def _split_url(url: str, text: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"{_mask_userinfo(text)} cannot be read") from None
    if "://" not in url or not _SCHEME.fullmatch(parts.scheme):
        raise ValueError(f"{_mask_userinfo(text)} must begin with http:// or https://")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc or not parts.netloc:
        raise ValueError(
            f"{_mask_userinfo(text)} must be scheme and host, such as https://app.example.com, and nothing else"
        )
    return parts


def _parse_netloc(parts: SplitResult, text: str) -> tuple[str, int | None]:
    """Return host and port.

    An IPv6 address is in brackets, a name in ASCII.
    """
    try:
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            return f"[{IPv6Address(host)}]", port
        if not host.isascii():
            host = host.encode("idna").decode()
    except (ValueError, UnicodeError):
        raise ValueError(f"{text} has no valid host or port") from None
    if re.search(r"[\s%@/\\]", host) or not host:
        raise ValueError(f"{text} has no valid host name")
    return host, port
