"""Checks tool calls right before their HTTP requests are sent.

A request may wait long for an access token or a connection. The SDK does not abort the request of a cancelled call to a
legacy server, so it would still be sent.
"""

import contextlib
import contextvars
from collections.abc import Generator

import httpx2

from gateway.domain.errors import TurnTakenOver
from gateway.ports.start_check import StartCheck

_SENDING = "http11.send_request_headers.started"
BEFORE_SEND = "gateway.before_send"
"""Extension of a request: the function to call before sending.

Transports other than httpx2's own read it.
"""


@contextlib.contextmanager
def checking_start(require_lease: StartCheck) -> Generator[None]:
    """Check each attempt of the block's first HTTP request.

    Later requests belong to a call that has started, for example its cancellation.
    """
    token = _checks.set([require_lease])
    try:
        yield
    finally:
        _checks.reset(token)


class StartCheckingTransport(httpx2.AsyncBaseTransport):
    """Does not send the request of a call that must not start.

    The answer is 202, as to a message without a result: nobody waits for one, because the check stops the turn.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        checks = _checks.get()
        if not checks:
            return await self._inner.handle_async_request(request)
        require_lease = checks.pop()

        async def check(event: str, _info: dict[str, object]) -> None:
            if event == _SENDING:
                require_lease()

        request.extensions = {**request.extensions, "trace": check, BEFORE_SEND: require_lease}
        try:
            return await self._inner.handle_async_request(request)
        except TurnTakenOver:
            return httpx2.Response(202, request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


_checks: contextvars.ContextVar[list[StartCheck] | None] = contextvars.ContextVar("mcp_start_checks", default=None)
