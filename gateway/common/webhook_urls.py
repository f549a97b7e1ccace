"""Policy of the URLs that requests may name for webhooks."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from gateway.domain.errors import InvalidRequest

MAX_URL_LENGTH = 2_000


def check_webhook_url(url: str, hosts: Iterable[str], *, param: str = "webhook_url") -> None:
    """Check a URL against the administrator's list of hosts.

    The addresses of its host are checked before each connection.

    Raises:
        InvalidRequest: webhooks are off, the URL is not one of the web, or its host is not in the list.
    """
    if not (patterns := tuple(hosts)):
        raise InvalidRequest(f"{param}: webhooks are off here; WEBHOOK_HOSTS permits hosts.", param=param)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InvalidRequest(f"{param}: must be a URL.", param=param) from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= MAX_URL_LENGTH
    if parts.scheme not in ("http", "https") or not host or port == 0 or not is_plain:
        raise InvalidRequest(f"{param}: must be an http or https URL.", param=param)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidRequest(f"{param}: must have no credentials and no fragment.", param=param)
    if not any(fnmatchcase(host, pattern.lower()) for pattern in patterns):
        raise InvalidRequest(f"{param}: its host is not one of those that WEBHOOK_HOSTS permits.", param=param)
