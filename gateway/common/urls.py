"""Addresses as they may be shown: a password or a key may stand in them."""

from urllib.parse import urlsplit, urlunsplit


def strip_url_secrets(url: str) -> str:
    """The address without what may be secret in it: user and password, query and fragment; nothing of what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
