"""Requests for chat completions, without the unneeded parts of httpx.

httpx builds and copies headers, and goes through authentication, redirects and hooks for each request: a tenth of what
a short turn costs. See docs/adr/0032.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx

from gateway.llm.http.bounded_transport import bound_response
from gateway.llm.http.pooled_transport import encode_request_head, open_body, read_timeouts
from gateway.llm.http.sdk_client import ModelHttpClient

_EMPTY_STREAM = httpx.ByteStream(b"")
"""Replaces a finished stream, which forms a reference cycle with its response.

See docs/adr/0007.
"""


@dataclass(slots=True)
class CompletionResponse:
    """Response before its body.

    `push_body` passes the body to a function as it arrives, see `HttpConnection.push_body`. Names of `headers` have
    lower case.
    """

    status: int
    headers: Mapping[str, str]
    push_body: Callable[[Callable[[bytes], bool]], Awaitable[bool]]
    aclose: Callable[[], Awaitable[None]]

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class CompletionRequests:
    """Sends requests with the URL, headers and timeouts of a prepared one.

    Requests through a proxy and recorded ones go through httpx.
    """

    def __init__(self, client: ModelHttpClient, prepared: httpx.Request, *, recorded: bool) -> None:
        self._client = client
        self._prepared = prepared
        transport = None if recorded else client.find_pooled_transport(prepared.url)
        self._pool = transport.find_pool(prepared.url) if transport is not None else None
        self._head = encode_request_head(prepared).removesuffix(b"\r\n")
        self._timeouts = read_timeouts(prepared)

    async def send_completion(self, content: bytes, headers: Mapping[str, str]) -> CompletionResponse:
        """Send a request with these further headers.

        Raises:
            httpx.HTTPError: there is no response.
        """
        if self._pool is None:
            return await self._send_with_httpx(content, headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        head = b"%bContent-Length: %d\r\n%b\r\n" % (self._head, len(content), lines)
        body = await open_body(self._pool, head, content, self._timeouts)
        received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in body.headers}
        if body.status == 200 and "content-encoding" not in received:
            body.forget_headers()
            return CompletionResponse(200, received, body.push_body, body.aclose)
        return _wrap_response(bound_response(body.make_response(self._prepared), self._prepared))

    async def _send_with_httpx(self, content: bytes, headers: Mapping[str, str]) -> CompletionResponse:
        prepared = self._prepared
        request = httpx.Request(
            "POST", prepared.url, headers=prepared.headers, content=content, extensions=prepared.extensions
        )
        request.headers.update(headers)
        return _wrap_response(await self._client.send(request, stream=True))


def _wrap_response(response: httpx.Response) -> CompletionResponse:
    pieces = aiter(response.aiter_raw())  # decompressed by the transport

    async def push_body(consume: Callable[[bytes], bool]) -> bool:
        async for data in pieces:
            if not consume(data):
                return False
        response.stream = _EMPTY_STREAM
        return True

    return CompletionResponse(response.status_code, dict(response.headers), push_body, response.aclose)
