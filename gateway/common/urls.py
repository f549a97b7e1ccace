"""URLs without the secrets that they may contain, for logs and answers."""

from urllib.parse import urlsplit, urlunsplit


def strip_url_secrets(url: str) -> str:
    """Return the URL without user, password, query and fragment.

    An empty text if it is not a URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
