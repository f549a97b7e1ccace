"""Types of values that several topics use."""

from ipaddress import ip_address
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from gateway_runtime.settings.hosts import split_list

CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def is_web_address(value: str) -> bool:
    return value.startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback one."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
