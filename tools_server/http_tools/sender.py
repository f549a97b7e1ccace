"""Sends the requests of defined tools: allowed addresses, checked redirects, bounded answers."""

import asyncio
from urllib.parse import urljoin
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from gateway_runtime.outgoing.guarded_http import AddressCheck, create_guarded_session, describe_transport_error
from gateway_runtime.outgoing.private_targets import TargetPolicy
from gateway_runtime.public_addresses import Address
from tools_server.http_tools.answers import RawAnswer
from tools_server.http_tools.compiled import DEFAULT_HEADERS, BuiltRequest
from tools_server.http_tools.errors import CallFailed
from tools_server.http_tools.redaction import SecretRedactor
from tools_server.thread_pool import BoundedThreadPool, ThreadedResolver

MAX_ANSWER_BYTES = 2 * 1024 * 1024
MAX_REDIRECTS = 5
_MAX_CALLS, _MAX_ORIGIN_CALLS = 64, 16
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_KEEPING_STATUSES = (307, 308)
_SAFE_METHODS = ("GET", "HEAD")
_CHUNK_BYTES = 65_536


class HttpSender:
    """Sends requests to public addresses, and to those of the administrator's list."""

    def __init__(self, policy: TargetPolicy) -> None:
        self._policy = policy
        self._resolver = ThreadedResolver(BoundedThreadPool(8))
        self._slots = asyncio.Semaphore(_MAX_CALLS)
        self._origin_slots: WeakValueDictionary[URL, asyncio.Semaphore] = WeakValueDictionary()

    async def send(
        self,
        request: BuiltRequest,
        redactor: SecretRedactor,
        *,
        timeout_seconds: float,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> RawAnswer:
        """Send a request and read its answer, redirects followed.

        Calls of a slow origin leave room for the others.

        Raises:
            CallFailed: no answer arrived in time, or a redirect or an address is not allowed.
        """
        try:
            origin_slots = self._get_origin_slots(URL(request.url, encoded=True).origin())
            async with asyncio.timeout(timeout_seconds), origin_slots, self._slots:
                return await self._follow_redirects(request, redactor, timeout_seconds, max_bytes)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise CallFailed(f"The request failed: {describe_transport_error(error)}.") from None

    def _get_origin_slots(self, origin: URL) -> asyncio.Semaphore:
        """Return the slots of an origin, which exist while calls hold them."""
        slots = self._origin_slots.get(origin)
        if slots is None:
            self._origin_slots[origin] = slots = asyncio.Semaphore(_MAX_ORIGIN_CALLS)
        return slots

    async def _follow_redirects(
        self, request: BuiltRequest, redactor: SecretRedactor, seconds: float, max_bytes: int
    ) -> RawAnswer:
        for _ in range(MAX_REDIRECTS + 1):
            url = URL(request.url, encoded=True)

            def is_allowed(address: Address, port: int, host: str = url.raw_host or "") -> bool:
                return self._policy.allows(host, address, port)

            async with (
                self._create_session(is_allowed, seconds) as session,
                session.request(
                    request.method, url, headers=request.headers, data=request.body, allow_redirects=False
                ) as response,
            ):
                location = response.headers.get("Location")
                if response.status not in _REDIRECT_STATUSES or location is None:
                    return await _read_answer(response, max_bytes)
                request = _redirect(request, response.status, location, redactor)
        raise CallFailed(f"The request failed: it was redirected more than {MAX_REDIRECTS} times.")

    def _create_session(self, is_allowed: AddressCheck, seconds: float) -> aiohttp.ClientSession:
        jar = aiohttp.DummyCookieJar()  # a cookie could be a secret that the next host reads
        return create_guarded_session(is_allowed, self._resolver, total_seconds=seconds, cookie_jar=jar)


def _redirect(request: BuiltRequest, status: int, location: str, redactor: SecretRedactor) -> BuiltRequest:
    """Return the request of a redirect.

    Another origin gets neither headers nor body.

    Raises:
        CallFailed: the redirect is not followed.
    """
    old, new = URL(request.url, encoded=True), URL(urljoin(request.url, location))
    if new.scheme not in ("http", "https") or not new.host or new.user or new.password:
        raise CallFailed("The request failed: it was redirected to something that is not a web address.")
    keeps_method = status in _KEEPING_STATUSES or request.method in _SAFE_METHODS
    method, body = (request.method, request.body) if keeps_method else ("GET", None)
    headers = request.headers
    if body is None:
        headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
    if old.origin() != new.origin():
        if method not in _SAFE_METHODS:
            raise CallFailed(f"The request failed: a {method} was redirected to another host.")
        if redactor.is_found_in(location) or redactor.is_found_in(str(new)):
            raise CallFailed("The request failed: it was redirected to another host with a secret in the address.")
        headers = dict(DEFAULT_HEADERS)
    return BuiltRequest(method, str(new.with_fragment(None)), headers, body)


async def _read_answer(response: aiohttp.ClientResponse, max_bytes: int) -> RawAnswer:
    body = bytearray()
    is_cut = False
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):  # decompressed
        body += chunk
        if len(body) > max_bytes:
            is_cut = True
            break
    charset = response.charset or "utf-8"
    return RawAnswer(response.status, response.content_type.lower(), charset, bytes(body[:max_bytes]), is_cut)
