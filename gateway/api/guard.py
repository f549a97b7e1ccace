"""Who may come in: asks every request for its credential and what that opens, and counts it, before anything reads it.

Pure ASGI, and only at the start of a request: nothing here runs for a chunk of a body.
"""

from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.access import Access, access_of, check
from gateway.api.auth import PRINCIPAL
from gateway.api.deps import State
from gateway.api.errors import error_response
from gateway.api.middleware import HEADERS
from gateway.errors import GatewayError, NotAuthenticated
from gateway.messages import Principal


class Guard:
    """Puts the principal into the scope, for the routes and for `/mcp` alike; or answers in their place."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        access = access_of(scope["method"], scope["path"])
        if not access.counted:
            await self._app(scope, receive, send)
            return
        state: State = scope["app"].state.gateway
        with ExitStack() as stack:
            try:
                principal = await _enter(scope, access, state)
                stack.enter_context(state.rates.stream(_credential(principal, scope), access.kind))
            except GatewayError as error:
                await _answer(error, scope, receive, send)
            else:
                await self._app(scope, receive, send)


async def _enter(scope: Scope, access: Access, state: State) -> Principal | None:
    """Let a request in; None: as nobody, where nobody is asked.

    Raises:
        GatewayError: it may not.
    """
    principal = None
    refused: NotAuthenticated | None = None
    if not access.public:
        try:
            principal = await state.auth.authenticate(Headers(scope=scope), source_of(scope))
        except NotAuthenticated as error:
            refused = error
    if state.rates.enabled:
        whose = f"user {principal.user}" if principal is not None else f"source {source_of(scope)}"
        window = await state.rates.hit(whose, access.kind if principal is not None else "api")
        scope[HEADERS].extend(window.headers())
        if not window.allowed:
            raise window.error()
    if refused is not None:
        raise refused
    if principal is not None:
        check(principal, access)
        scope[PRINCIPAL] = principal
    return principal


def source_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _credential(principal: Principal | None, scope: Scope) -> str:
    if principal is None:
        return f"source {source_of(scope)}"
    return f"{principal.key} {principal.user}"


async def _answer(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    response = error_response(request, error.status, error.code, error.message, error.param, error.retry_after)
    await response(scope, receive, send)
