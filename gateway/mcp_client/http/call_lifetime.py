"""Ends the HTTP exchanges of a call with the call.

A silent call may take longer than the time in which another answer must arrive. The SDK does not end the exchange of a
call to a legacy server that was given up, so nothing else would.
"""

import contextlib
import contextvars
from collections.abc import AsyncGenerator, Generator

import anyio
import httpx2


class _CallExchanges:
    """The HTTP exchanges of one call."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._has_begun = self._has_ended = False

    def owns(self, request: httpx2.Request) -> bool:
        """Return whether the request is the call itself.

        Later ones are its cancellation, answers to the server, and streams on which the call resumes.
        """
        is_own = request.method == "GET" or not self._has_begun
        self.begin()
        return is_own

    def begin(self) -> None:
        """Take the request of the call as sent."""
        self._has_begun = True

    @contextlib.contextmanager
    def end_with_call(self) -> Generator[anyio.CancelScope]:
        """Cancel the block when the call ends."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._has_ended:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        self._has_ended = True
        for scope in self._scopes:
            scope.cancel()


@contextlib.contextmanager
def lasting_exchange() -> Generator[None]:
    """Give the call in this block no read timeout.

    Its exchanges end with the block.
    """
    exchanges = _CallExchanges()
    token = _exchanges.set(exchanges)
    try:
        yield
    finally:
        _exchanges.reset(token)
        exchanges.end()


def begin_direct_call() -> None:
    """Note that the call of this block is sent around the SDK."""
    if (exchanges := _exchanges.get()) is not None:
        exchanges.begin()


class CallLifetimeTransport(httpx2.AsyncBaseTransport):
    """Applies `lasting_exchange`.

    Streams of a server's own messages have no read timeout either.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchanges = _exchanges.get()
        is_of_call = exchanges is not None and exchanges.owns(request)
        if is_of_call or request.method == "GET":
            timeout = {**request.extensions.get("timeout", {}), "read": None}
            request.extensions = {**request.extensions, "timeout": timeout}
        if exchanges is None or not is_of_call:
            return await self._inner.handle_async_request(request)
        with exchanges.end_with_call():
            response = await self._inner.handle_async_request(request)
            if isinstance(response.stream, httpx2.AsyncByteStream):
                response.stream = _CallStream(response.stream, exchanges)
            return response
        raise httpx2.ReadError("the call has ended", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _CallStream(httpx2.AsyncByteStream):
    """A body that ends with its call."""

    def __init__(self, inner: httpx2.AsyncByteStream, exchanges: _CallExchanges) -> None:
        self._inner = inner
        self._exchanges = exchanges

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        chunks = aiter(self._inner)
        chunk: bytes | None = b""
        while chunk is not None:
            if chunk:
                yield chunk
            chunk = None
            with self._exchanges.end_with_call():
                chunk = await anext(chunks, None)

    async def aclose(self) -> None:
        await self._inner.aclose()


_exchanges: contextvars.ContextVar[_CallExchanges | None] = contextvars.ContextVar("mcp_call_exchanges", default=None)
