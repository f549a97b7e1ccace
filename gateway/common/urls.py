"""URLs without the secrets that they may contain, for logs and answers."""

from urllib.parse import urlsplit, urlunsplit


def is_same_endpoint(url: str | None, known: str | None) -> bool:
    """Return whether two URLs lead to one endpoint.

    Secrets, queries and a last slash may differ.
    """
    return bool(url and known) and _strip_endpoint(url or "") == _strip_endpoint(known or "") != ""


def strip_url_secrets(url: str) -> str:
    """Return the URL without user, password, query and fragment.

    An empty text if it is not a URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _strip_endpoint(url: str) -> str:
    return strip_url_secrets(url).rstrip("/")
