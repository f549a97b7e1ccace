"""Waits until a session can hear what its server asks.

A server drops a request of its own, for roots or for input, while nobody listens on its stream.
"""

import asyncio

import httpx2

from gateway.common.concurrency import Deadline
from gateway.mcp_client.http_transport import SESSION_HEADER

_HEAD_SECONDS = 0.5


class ListeningTransport(httpx2.AsyncBaseTransport):
    """Notices when the server has answered the request for its stream."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._has_session = False
        self._was_answered = asyncio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            try:
                return await self._inner.handle_async_request(request)
            finally:
                self._was_answered.set()
        response = await self._inner.handle_async_request(request)
        self._has_session = self._has_session or SESSION_HEADER in response.headers
        return response

    async def wait_until_listening(self) -> None:
        """Wait for the head of the stream, shortly.

        A few servers send it with the first event only.
        """
        if not self._has_session:  # the SDK opens the stream of a session only
            return
        try:
            async with Deadline.after(_HEAD_SECONDS).limit():
                await self._was_answered.wait()
        except TimeoutError:
            return

    async def aclose(self) -> None:
        await self._inner.aclose()
