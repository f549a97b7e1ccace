"""Policy of the URLs that requests may name for webhooks."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from gateway.domain.errors import InvalidRequest

MAX_URL_LENGTH = 2_000
_PARAM = "webhook_url"


def check_webhook_url(url: str, hosts: Iterable[str]) -> None:
    """Check a URL against the administrator's list of hosts.

    The addresses of its host are checked before each connection.

    Raises:
        InvalidRequest: webhooks are off, the URL is not one of the web, or its host is not in the list.
    """
    if not (patterns := tuple(hosts)):
        raise InvalidRequest("webhook_url: webhooks are off here; WEBHOOK_HOSTS permits hosts.", param=_PARAM)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InvalidRequest("webhook_url: must be a URL.", param=_PARAM) from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= MAX_URL_LENGTH
    if parts.scheme not in ("http", "https") or not host or port == 0 or not is_plain:
        raise InvalidRequest("webhook_url: must be an http or https URL.", param=_PARAM)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidRequest("webhook_url: must have no credentials and no fragment.", param=_PARAM)
    if not any(fnmatchcase(host, pattern.lower()) for pattern in patterns):
        raise InvalidRequest("webhook_url: its host is not one of those that WEBHOOK_HOSTS permits.", param=_PARAM)
