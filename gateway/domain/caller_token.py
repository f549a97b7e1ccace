"""A caller's own token, to exchange for one of a server."""

from typing import TypeVar

import msgspec
from pydantic import SecretStr

JWT_KEY = "jwt"
"""`Principal.key` of callers with a JSON web token."""


class CallerToken(msgspec.Struct, frozen=True):
    """A verified JSON web token of a caller.

    It cannot be stored, as `SecretStr` has no stored form. `expires_at` is in seconds since the epoch. `is_main`: its
    issuer is the first one that the gateway accepts.
    """

    value: SecretStr
    expires_at: float
    issuer: str
    is_main: bool = True


Caller = TypeVar("Caller", bound=msgspec.Struct)


def strip_secrets(principal: Caller) -> Caller:
    """Return a principal as it may be stored."""
    return msgspec.structs.replace(principal, headers={}, token=None)
