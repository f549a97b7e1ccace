"""The proxy of the environment for a server's address."""

import httpx2
from httpx2._utils import URLPattern, get_environment_proxies


def find_proxy(url: str) -> str | None:
    """Return the proxy of the environment for a URL."""
    patterns = sorted((URLPattern(pattern), proxy) for pattern, proxy in get_environment_proxies().items())
    return next((proxy for pattern, proxy in patterns if pattern.matches(httpx2.URL(url))), None)
