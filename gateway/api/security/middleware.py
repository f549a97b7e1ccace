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

from gateway.api.http.errors import error_response, http_error
from gateway.api.http.request_context import HEADERS_SCOPE_KEY
from gateway.api.http.unicode_check import reject_lone_surrogates
from gateway.api.rate_limit.admission import AdmissionGate
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY, Authenticator
from gateway.api.security.permissions import (
    ANYONE,
    RouteClass,
    RoutePermission,
    find_permission,
    list_methods,
    require_permission,
)
from gateway.config import Settings, is_loopback
from gateway.domain.errors import Forbidden, GatewayError, WrongHost
from gateway.domain.messages import Principal

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[[]::1]")
_MAX_ADDRESS_LENGTH = 64
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_STREAMING_CLASSES: tuple[RouteClass, ...] = ("chat", "mcp")


class SecurityMiddleware:
    """Puts the principal into the scope, for the routes and for `/mcp` alike; or answers in their place."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._admission_gate = AdmissionGate()
        self._allowed_origins = settings.cors_origins
        self._trusted_hosts = settings.trusted_hosts
        if not self._trusted_hosts and is_loopback(settings.gateway_host):
            self._trusted_hosts = (*_LOCAL_HOSTS, settings.gateway_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = find_permission(scope["method"], scope["path"])
        access = known or ANYONE
        if not access.counted:
            await self._app(scope, receive, send)
            return
        if access.starts_turn:
            await self._admission_gate.wait_for_admission()
        try:
            source = get_source_address(scope)
            principal = await self._authorize_request(scope, access, source)
            self._check_origin(scope, principal)
            place = (
                await _rate_limiter(scope).acquire_stream_slot(principal, source)
                if access.route_class in _STREAMING_CLASSES
                else None
            )
        except GatewayError as error:
            await _send_error(error, scope, receive, send)
            return
        if known is None:
            status = 405 if list_methods(scope["path"]) else 404
            await http_error(Request(scope), HTTPException(status))(scope, receive, send)
        elif place is None:
            await self._app(scope, reject_lone_surrogates(receive), send)
        else:
            with place, _authenticator(scope).open_requests.cancel_on_revocation(principal, receive) as lasting:
                await self._app(scope, reject_lone_surrogates(lasting), send)

    async def _authorize_request(self, scope: Scope, access: RoutePermission, source: str) -> Principal | None:
        """Let a request in; None: as nobody, where nobody is asked. Whoever is refused counts by where they come from.

        Raises:
            GatewayError: it may not.
        """
        principal = None
        refused: GatewayError | None = None
        try:
            self._check_host(scope)
            if not access.public:
                principal = await _authenticator(scope).authenticate_request(Headers(scope=scope), source)
        except GatewayError as error:
            refused = error
        rate_limiter = _rate_limiter(scope)
        if rate_limiter.enabled:
            window = await rate_limiter.check_request(principal, source, access.route_class)
            scope[HEADERS_SCOPE_KEY].extend(window.to_headers())
            if not window.allowed:
                raise window.to_error()
        if refused is not None:
            raise refused
        if principal is not None:
            require_permission(principal, access)
            scope[PRINCIPAL_SCOPE_KEY] = principal
        return principal

    def _check_host(self, scope: Scope) -> None:
        """A page in a browser must not reach us by a name of its own (DNS rebinding)."""
        host = _parse_host(Headers(scope=scope).get("host", ""))
        if self._trusted_hosts and not any(fnmatchcase(host, trusted) for trusted in self._trusted_hosts):
            raise WrongHost

    def _check_origin(self, scope: Scope, principal: Principal | None) -> None:
        """Where nobody is asked for a credential, a page of another site must change nothing in our user's name."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE_METHODS or (principal is not None and principal.key is not None):
            return
        same = urlsplit(origin).netloc == headers.get("host")
        if not same and origin not in self._allowed_origins and "*" not in self._allowed_origins:
            raise Forbidden("Pages of this origin may not call the gateway: see CORS_ORIGINS.")


def _authenticator(scope: Scope) -> Authenticator:
    return scope["app"].state.auth


def _rate_limiter(scope: Scope) -> RateLimiter:
    return scope["app"].state.rates


def _parse_host(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def get_source_address(scope: Scope) -> str:
    """The IP address that a request comes from, written in one way; "unknown" where there is none, or where a proxy
    passes on what is none (`X-Forwarded-For`), lest whoever wrote that be somebody else at each request."""
    client = scope.get("client")
    host = str(client[0]).partition("%")[0] if client else ""
    return _normalize_address(host) if len(host) <= _MAX_ADDRESS_LENGTH else "unknown"


@lru_cache(maxsize=1024)
def _normalize_address(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return "unknown"
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)


async def _send_error(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    response = error_response(request, error.status, error.code, error.message, error.param, error.retry_after)
    await response(scope, receive, send)
