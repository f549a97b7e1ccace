"""Who may come in: asks every request for its credential and what that opens, and counts it, before anything reads it.

Pure ASGI, and only at the start of a request: nothing here runs for a chunk of a body.
"""

from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.deps import State
from gateway.api.http.errors import error_response, http_error
from gateway.api.http.request_context import HEADERS
from gateway.api.http.unicode_check import whole_characters
from gateway.api.rate_limit.admission import Entrance
from gateway.api.security.authentication import PRINCIPAL
from gateway.api.security.permissions import ANYONE, Access, RouteClass, access_of, check, methods_of
from gateway.config import Settings, is_loopback
from gateway.domain.errors import Forbidden, GatewayError, WrongHost
from gateway.domain.messages import Principal

_LOCAL = ("127.0.0.1", "localhost", "[[]::1]")
_LONGEST_ADDRESS = 64
_SAFE = ("GET", "HEAD", "OPTIONS")
_LASTING: tuple[RouteClass, ...] = ("chat", "mcp")


class Guard:
    """Puts the principal into the scope, for the routes and for `/mcp` alike; or answers in their place."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._entrance = Entrance()
        self._origins = settings.cors_origins
        self._hosts = settings.trusted_hosts
        if not self._hosts and is_loopback(settings.gateway_host):
            self._hosts = (*_LOCAL, settings.gateway_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = access_of(scope["method"], scope["path"])
        access = known or ANYONE
        if not access.counted:
            await self._app(scope, receive, send)
            return
        if access.begins:
            await self._entrance.enter()
        state: State = scope["app"].state.gateway
        try:
            source = source_of(scope)
            principal = await self._enter(scope, access, state, source)
            self._check_origin(scope, principal)
            place = await state.rates.place(principal, source) if access.kind in _LASTING else None
        except GatewayError as error:
            await _answer(error, scope, receive, send)
            return
        if known is None:
            status = 405 if methods_of(scope["path"]) else 404
            await http_error(Request(scope), HTTPException(status))(scope, receive, send)
        elif place is None:
            await self._app(scope, whole_characters(receive), send)
        else:
            with place, state.auth.lasting.ending_with_key(principal, receive) as lasting:
                await self._app(scope, whole_characters(lasting), send)

    async def _enter(self, scope: Scope, access: Access, state: State, source: str) -> Principal | None:
        """Let a request in; None: as nobody, where nobody is asked. Whoever is refused counts by where they come from.

        Raises:
            GatewayError: it may not.
        """
        principal = None
        refused: GatewayError | None = None
        try:
            self._check_host(scope)
            if not access.public:
                principal = await state.auth.authenticate(Headers(scope=scope), source)
        except GatewayError as error:
            refused = error
        if state.rates.enabled:
            window = await state.rates.hit(principal, source, access.kind)
            scope[HEADERS].extend(window.headers())
            if not window.allowed:
                raise window.error()
        if refused is not None:
            raise refused
        if principal is not None:
            check(principal, access)
            scope[PRINCIPAL] = principal
        return principal

    def _check_host(self, scope: Scope) -> None:
        """A page in a browser must not reach us by a name of its own (DNS rebinding)."""
        host = _host(Headers(scope=scope).get("host", ""))
        if self._hosts and not any(fnmatchcase(host, trusted) for trusted in self._hosts):
            raise WrongHost

    def _check_origin(self, scope: Scope, principal: Principal | None) -> None:
        """Where nobody is asked for a credential, a page of another site must change nothing in our user's name."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE or (principal is not None and principal.key is not None):
            return
        same = urlsplit(origin).netloc == headers.get("host")
        if not same and origin not in self._origins and "*" not in self._origins:
            raise Forbidden("Pages of this origin may not call the gateway: see CORS_ORIGINS.")


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def source_of(scope: Scope) -> str:
    """The IP address that a request comes from, written in one way; "unknown" where there is none, or where a proxy
    passes on what is none (`X-Forwarded-For`), lest whoever wrote that be somebody else at each request."""
    client = scope.get("client")
    host = str(client[0]).partition("%")[0] if client else ""
    return _address(host) if len(host) <= _LONGEST_ADDRESS else "unknown"


@lru_cache(maxsize=1024)
def _address(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return "unknown"
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)


async def _answer(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    response = error_response(request, error.status, error.code, error.message, error.param, error.retry_after)
    await response(scope, receive, send)
