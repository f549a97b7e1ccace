"""Origins whose pages may call the gateway, and their refusal."""

import re
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.errors import error_response
from gateway.domain.errors import Forbidden
from gateway.settings.origins import DEV_KEYWORD, DEV_ORIGINS
from gateway.settings.values import LOCAL_HOSTS
from gateway_runtime.settings.hosts import is_host_allowed

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?", re.IGNORECASE)


def is_allowed_origin(origin: str, allowed_origins: tuple[str, ...]) -> bool:
    """Return whether CORS_ORIGINS allows an origin."""
    return "*" in allowed_origins or origin in allowed_origins


def is_local_origin(origin: str) -> bool:
    """Return whether an origin is a page that this machine serves."""
    scheme, _, host = origin.partition("://")
    return scheme.lower() in ("http", "https") and is_host_allowed(host, LOCAL_HOSTS)


def describe_refused_origin(origin: str, cors_origins: tuple[str, ...]) -> str:
    """Tell an operator which line allows an origin.

    The message does not list the origins of CORS_ORIGINS, which may be names of internal hosts.
    """
    if not _ORIGIN.fullmatch(origin):
        return "This page has no origin that CORS_ORIGINS can allow. Serve it over http or https, not from a file."
    if not cors_origins:
        line = f"add the line CORS_ORIGINS={origin} to .env"
    elif set(cors_origins) == set(DEV_ORIGINS):  # of `make dev`, or of a line in .env
        line = f"set the line CORS_ORIGINS={DEV_KEYWORD},{origin} in .env"
    else:
        line = f"append ,{origin} to the line CORS_ORIGINS=… in .env"
    return f"Pages of {origin} may not call the gateway. To allow them, {line}, and restart the gateway."


class PreflightMiddleware:
    """Refuses preflight requests of other origins.

    The message names the setting. Starlette's middleware answers them with an empty reason, and without allowed origins
    it is not installed.
    """

    def __init__(self, app: ASGIApp, allowed_origins: tuple[str, ...]) -> None:
        self._app = app
        self._allowed_origins = allowed_origins

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            origin = headers.get("origin", "")
            is_preflight = origin and "access-control-request-method" in headers
            if is_preflight and not is_allowed_origin(origin, self._allowed_origins):
                message = describe_refused_origin(origin, self._allowed_origins)
                response = error_response(Request(scope), Forbidden.status, Forbidden.code, message)
                return response(scope, receive, send)
        return self._app(scope, receive, send)
