"""The HTTP client of a model server's SDK: httpx with other connections.

See docs/adr/0003 and docs/adr/0032.
"""

from functools import lru_cache, partial
from typing import Any

import httpx

from gateway.llm.http.bounded_transport import BoundedTransport
from gateway.llm.http.pooled_transport import PooledTransport
from gateway.llm.recording import Recorder
from gateway_runtime.trusted_certificates import create_trusting_context

MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS = 2_000, 200
get_ssl_context = lru_cache(maxsize=1)(
    partial(create_trusting_context, partial(httpx.create_ssl_context, trust_env=False))
)
"""Load the trusted certificates once per process.

Loading them is the slowest part of creating a client.
"""


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Ignore the cookies of a response.

        All users would share them. See docs/adr/0003.
        """


class ModelHttpClient(httpx.AsyncClient):
    """httpx with pooled connections, and with aiohttp's through a proxy."""

    _no_cookies = _NoCookies()
    _pooled_transport: PooledTransport

    @property
    def cookies(self) -> httpx.Cookies:  # pyright: ignore[reportIncompatibleMethodOverride] - never assigned
        return self._no_cookies

    def _init_transport(self, *arguments: Any, **options: Any) -> httpx.AsyncBaseTransport:
        self._pooled_transport = PooledTransport(get_ssl_context(), options["limits"])
        return BoundedTransport(self._pooled_transport)

    def _init_proxy_transport(self, *arguments: Any, **options: Any) -> httpx.AsyncBaseTransport:
        from gateway.llm.http.proxy_transport import ProxyTransport  # see docs/adr/0016

        (proxy,) = arguments
        return BoundedTransport(ProxyTransport(proxy=proxy, **options))

    def find_pooled_transport(self, url: httpx.URL) -> PooledTransport | None:
        """Return the transport of requests to an address.

        Return None if they go through a proxy.
        """
        return self._pooled_transport if self._transport_for_url(url) is self._transport else None


def create_http_client(recorder: Recorder | None) -> ModelHttpClient:
    """Create the HTTP client of an SDK."""
    client = ModelHttpClient(
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_IDLE_CONNECTIONS),
        verify=get_ssl_context(),
        event_hooks=recorder.hooks if recorder else None,
    )
    client.headers.clear()  # copied for each call, and the SDKs set their own
    client.headers["Accept-Encoding"] = "identity"  # compression delays the chunks of a stream
    return client
