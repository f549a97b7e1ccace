"""Authentication, permissions and rate limits of every request.

They are checked before the body is read. The middleware is pure ASGI, because other kinds of middleware run for each
chunk of a body. See docs/adr/0005.
"""

import asyncio
from functools import lru_cache, partial
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.errors import gateway_error, http_error
from gateway.api.http.request_context import HEADERS_SCOPE_KEY, STARTED_SCOPE_KEY
from gateway.api.rate_limit.admission import AdmissionGate
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY, Authenticator, has_credential
from gateway.api.security.origins import describe_refused_origin, is_allowed_origin, is_local_origin
from gateway.api.security.permissions import (
    ANYONE,
    PERMISSION_SCOPE_KEY,
    RouteClass,
    RoutePermission,
    find_permission,
    list_methods,
    require_permission,
)
from gateway.common.load import LoadMonitor
from gateway.config import Settings
from gateway.domain.errors import Forbidden, GatewayError, WrongHost
from gateway.domain.messages import LOCAL_PRINCIPAL, Principal
from gateway.settings.values import is_loopback
from gateway.wire.sse import PENDING_STREAMS_SCOPE_KEY, send_pending_streams
from gateway_runtime.connections.limits import get_connection_source
from gateway_runtime.settings.hosts import is_host_allowed

_IDENTIFY_SECONDS = 2.0
_MAX_CACHED_HOSTS = 64
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_STREAMING_CLASSES: tuple[RouteClass, ...] = ("chat", "mcp")


class SecurityMiddleware:
    """Adds the principal to a request's scope.

    A request that is not allowed is answered with an error.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._admission_gate = AdmissionGate()
        public_origins = () if settings.public_origin is None else (settings.public_origin,)
        self._cors_origins = settings.cors_origins
        self._allowed_origins = (*settings.cors_origins, *public_origins)
        self._trusted_hosts = settings.list_trusted_hosts()
        is_trusted = partial(is_host_allowed, patterns=self._trusted_hosts)
        self._is_trusted_host = lru_cache(_MAX_CACHED_HOSTS)(is_trusted)
        self._is_local = is_loopback(settings.gateway_host) and not settings.trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route_permission = find_permission(scope["method"], scope["path"])
        permission = scope[PERMISSION_SCOPE_KEY] = route_permission or ANYONE
        if not permission.counted:
            if permission.detailed and (caller := await self._identify_caller(scope)) is not None:
                scope[PRINCIPAL_SCOPE_KEY] = caller
            await self._app(scope, receive, send)
            return
        try:
            if permission.starts_turn or permission.route_class == "tools":
                _get_load_monitor(scope).check_capacity()
            if permission.starts_turn:
                await self._admission_gate.wait_for_admission()
            source = get_source_address(scope)
            headers = Headers(scope=scope)
            principal = await self._authorize_request(scope, headers, permission, source)
            self._check_origin(scope, headers, principal, permission)
            slot = (
                await _get_rate_limiter(scope).acquire_stream_slot(principal, source)
                if permission.route_class in _STREAMING_CLASSES
                else None
            )
        except GatewayError as error:
            await _send_error(error, scope, receive, send)
            return
        if route_permission is None:
            status = 405 if list_methods(scope["path"]) else 404
            await http_error(Request(scope), HTTPException(status))(scope, receive, send)
        elif slot is None:
            await self._app(scope, receive, send)
        else:
            open_requests = _get_authenticator(scope).open_requests
            with slot, open_requests.cancel_on_revocation(principal, scope, receive) as revocable_receive:
                scope[PENDING_STREAMS_SCOPE_KEY] = []
                await self._app(scope, revocable_receive, send)
                if scope[PENDING_STREAMS_SCOPE_KEY]:
                    await _send_stream(scope, revocable_receive, send)

    async def _identify_caller(self, scope: Scope) -> Principal | None:
        """Return the caller of a route that shows more to admins.

        None: the caller is unknown, or cannot be determined in time. A request with a credential counts like any other,
        so that keys cannot be guessed here without limit.
        """
        authenticator = _get_authenticator(scope)
        try:
            async with asyncio.timeout(_IDENTIFY_SECONDS):
                headers = Headers(scope=scope)
                if has_credential(headers):
                    return await self._authorize_request(scope, headers, ANYONE, get_source_address(scope))
                self._check_host(headers)
                return LOCAL_PRINCIPAL if await authenticator.is_open() else None
        except (GatewayError, TimeoutError):
            return None

    async def _authorize_request(
        self, scope: Scope, headers: Headers, permission: RoutePermission, source: str
    ) -> Principal | None:
        """Return the principal of a request.

        Return None on a public route. Failures count against the source address.

        Raises:
            GatewayError: the request is not allowed.
        """
        principal = None
        rejection: GatewayError | None = None
        try:
            self._check_host(headers)
            if not permission.public:
                principal = await _get_authenticator(scope).authenticate_request(headers, source)
        except GatewayError as error:
            rejection = error
        rate_limiter = _get_rate_limiter(scope)
        if rate_limiter.enabled:
            status = await rate_limiter.check_request(principal, source, permission.route_class)
            scope[HEADERS_SCOPE_KEY].extend(status.to_headers())
            if not status.allowed:
                raise status.to_error()
        if rejection is not None:
            raise rejection
        if principal is not None:
            require_permission(principal, permission)
            scope[PRINCIPAL_SCOPE_KEY] = principal
        return principal

    def _check_host(self, headers: Headers) -> None:
        """Reject unknown host names, against DNS rebinding by web pages."""
        if self._trusted_hosts and not self._is_trusted_host(headers.get("host", "")):
            raise WrongHost

    def _check_origin(
        self, scope: Scope, headers: Headers, principal: Principal | None, permission: RoutePermission
    ) -> None:
        """Reject changes by web pages of other origins.

        The check runs while no credential is required. MCP on a loopback address is for pages of this machine, whatever
        their method and credential.
        """
        origin = headers.get("origin")
        if origin is None:
            return
        needs_no_credential = scope["method"] not in _SAFE_METHODS and (principal is None or principal.key is None)
        is_foreign = self._is_local and permission.route_class == "mcp" and not is_local_origin(origin)
        if not needs_no_credential and not is_foreign:
            return
        is_same_origin = urlsplit(origin).netloc == headers.get("host")
        if not is_same_origin and not is_allowed_origin(origin, self._allowed_origins):
            raise Forbidden(describe_refused_origin(origin, self._cors_origins))


def _get_authenticator(scope: Scope) -> Authenticator:
    return scope["app"].state.auth


def _get_load_monitor(scope: Scope) -> LoadMonitor:
    return scope["app"].state.load


def _get_rate_limiter(scope: Scope) -> RateLimiter:
    return scope["app"].state.rates


def get_source_address(scope: Scope) -> str:
    """Return the source of a request; see `get_connection_source`."""
    client = scope.get("client")
    return get_connection_source(str(client[0]) if client else None)


async def _send_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the stream that the route has returned, or its error."""
    try:
        await send_pending_streams(scope, receive, send)
    except GatewayError as error:
        if STARTED_SCOPE_KEY in scope:
            raise
        await _send_error(error, scope, receive, send)


async def _send_error(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    await gateway_error(Request(scope), error)(scope, receive, send)
