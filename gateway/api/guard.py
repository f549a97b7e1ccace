"""Who may come in: asks every request for its credential and what that opens, before anything else reads it.

Pure ASGI, and only at the start of a request: nothing here runs for a chunk of a body.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.access import access_of, check
from gateway.api.auth import PRINCIPAL
from gateway.api.deps import State
from gateway.api.errors import error_response
from gateway.errors import GatewayError


class Guard:
    """Puts the principal into the scope, for the routes and for `/mcp` alike; or answers in their place."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        access = access_of(scope["method"], scope["path"])
        if not access.public:
            state: State = scope["app"].state.gateway
            try:
                scope[PRINCIPAL] = principal = await state.auth.authenticate(Headers(scope=scope), source_of(scope))
                check(principal, access)
            except GatewayError as error:
                await _answer(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def source_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _answer(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    response = error_response(request, error.status, error.code, error.message, error.param, error.retry_after)
    await response(scope, receive, send)
