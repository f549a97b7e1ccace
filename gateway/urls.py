"""Addresses as they may be shown: a password or a key may stand in them."""

from urllib.parse import urlsplit, urlunsplit


def bare(url: str) -> str:
    """The address without what may be secret in it: user and password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
