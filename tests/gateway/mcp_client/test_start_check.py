"""Requests of tool calls that wait for a token or a connection."""

import asyncio

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.domain.errors import TurnTakenOver
from gateway.mcp_client.http.pooled_transport import PooledServerTransport
from gateway.mcp_client.http.start_check import StartCheckingTransport, checking_start
from gateway.mcp_client.http_transport import get_ssl_context
from tests.stack import serve_asgi


class CountingServer:
    """Answers the first requests with the statuses, and all others with 200."""

    def __init__(self, *statuses: int) -> None:
        self.paths: list[str] = []
        self._statuses = list(statuses)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(Request(scope).url.path)
        await Response(status_code=self._statuses.pop(0) if self._statuses else 200)(scope, receive, send)


class TokenTransport(httpx2.AsyncBaseTransport):
    """Waits for a token before each attempt of a request."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self.waiting = asyncio.Event()
        self.has_token = asyncio.Event()
        self._inner = inner

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        while True:
            self.waiting.set()
            await self.has_token.wait()
            response = await self._inner.handle_async_request(request)
            if response.status_code != 401:
                return response
            await response.aclose()
            self.waiting.clear()
            self.has_token.clear()


class Lease:
    def __init__(self) -> None:
        self.is_valid = True

    def require(self) -> None:
        if not self.is_valid:
            raise TurnTakenOver


@pytest.fixture(params=["direct", "proxied"])
def transport(request: pytest.FixtureRequest) -> TokenTransport:
    """Transports to servers without a proxy, and behind one."""
    is_direct = request.param == "direct"
    return TokenTransport(PooledServerTransport(get_ssl_context()) if is_direct else httpx2.AsyncHTTPTransport())


async def send_call(transport: TokenTransport, address: str, lease: Lease) -> list[int]:
    """Send a call, and a message that belongs to it.

    Return the statuses of the answers.
    """
    async with httpx2.AsyncClient(transport=StartCheckingTransport(transport)) as client:
        with checking_start(lease.require):
            return [(await client.post(f"{address}/{path}")).status_code for path in ("call", "cancellation")]


async def test_call_is_not_sent_if_its_token_comes_after_the_lease(transport: TokenTransport) -> None:
    server, lease = CountingServer(), Lease()
    async with serve_asgi(server) as address, asyncio.timeout(30):
        call = asyncio.create_task(send_call(transport, address, lease))
        await transport.waiting.wait()
        lease.is_valid = False
        transport.has_token.set()
        assert await call == [202, 200]
    assert server.paths == ["/cancellation"]


async def test_refused_call_is_not_sent_again_if_its_token_comes_after_the_lease(transport: TokenTransport) -> None:
    server, lease = CountingServer(401), Lease()
    transport.has_token.set()
    async with serve_asgi(server) as address, asyncio.timeout(30):
        call = asyncio.create_task(send_call(transport, address, lease))
        while transport.has_token.is_set():
            await asyncio.sleep(0)
        await transport.waiting.wait()
        lease.is_valid = False
        transport.has_token.set()
        assert await call == [202, 200]
    assert server.paths == ["/call", "/cancellation"]


async def test_call_within_the_lease_is_sent(transport: TokenTransport) -> None:
    server, lease = CountingServer(), Lease()
    transport.has_token.set()
    async with serve_asgi(server) as address:
        assert await send_call(transport, address, lease) == [200, 200]
    assert server.paths == ["/call", "/cancellation"]
