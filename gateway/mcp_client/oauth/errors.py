"""Errors of a sign-in.

`str()` of each is for the person who signs in.
"""


class InsecureUrl(Exception):
    """A server names an address that the gateway refuses to use."""


class UnsafeAuthorizationServer(Exception):
    """The authorization server lacks a protection that the gateway requires."""


class AuthorizationRefused(Exception):
    """The authorization server sent the user back with an error."""


class TokenRefused(Exception):
    """An authorization server refuses a grant.

    `str()` is its OAuth error code.
    """
