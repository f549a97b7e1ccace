"""Authentication, permissions and rate limits of every request, before its body is read.

Pure ASGI, and only at the start of a request: nothing here runs per chunk of a body.
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
    """Adds the principal to the scope of a request, or answers the request with an error."""

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
        """The principal of a request; None on a public route. Failed requests count against their source address.

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
        """Reject unknown host names, against DNS rebinding by web pages."""
        host = _parse_host(Headers(scope=scope).get("host", ""))
        if self._trusted_hosts and not any(fnmatchcase(host, trusted) for trusted in self._trusted_hosts):
            raise WrongHost

    def _check_origin(self, scope: Scope, principal: Principal | None) -> None:
        """Reject changes by web pages of other origins while no credential is required."""
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
    """The host name in a Host header, in lower case and without the port."""
    name = header.lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def get_source_address(scope: Scope) -> str:
    """The IP address that a request comes from, in canonical form.

    "unknown" if there is none or it is invalid, as in a forged `X-Forwarded-For`: otherwise a client could evade its
    rate limit with another value in each request.
    """
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
