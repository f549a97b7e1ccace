"""Authentication by a token of the gateway or authorization server.

The token's `sub` is the user. While the server listens on a loopback address, and no setting configures tokens, callers
on this machine without a token are `local`.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import jwt
from jwt.types import Options
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_runtime.settings.hosts import is_host_allowed
from tools_server.config import LOOPBACK_HOSTS, Settings
from tools_server.published_keys import KeysUnavailable, PublishedKeys, UnknownKey

LOCAL_USER = "local"
USER_SCOPE_KEY = "tools_server.user"
DEFINITIONS_PATH = "/definitions"
DEFINE_SCOPE = "tools:define"
"""Scope of the gateway's tokens with which an admin defines tools."""
_GATEWAY_ISSUER = "agent-gateway"
_MAX_USER_LENGTH = 256
_LEEWAY_SECONDS = 5
_ALGORITHMS = ["RS256", "ES256", "PS256", "EdDSA"]
# Clients compare issuers as text, so pydantic must not append a slash.
_URL_ADAPTER = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))
_PROXY_HEADERS = frozenset(
    (
        b"client-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-azure-clientip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-original-host",
        b"x-real-ip",
    )
)
_PROXY_PREFIXES = (b"cf-", b"tailscale-", b"x-amzn-", b"x-envoy-", b"x-forwarded", b"x-original-forwarded")
"""Headers that proxies add.

Callers behind a proxy are not on this machine.
"""
METADATA_PATH = "/.well-known/oauth-protected-resource"


_REQUIRED_CLAIMS: Options = {"require": ["sub", "aud", "iss", "iat", "exp"]}


def _is_behind_proxy(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a proxy passed the request on.

    It may show by its headers, or by a host name of others.
    """
    is_local_name = is_host_allowed(headers.get(b"host", b"").decode("latin-1"), LOOPBACK_HOSTS)
    return not is_local_name or any(map(_is_proxy_header, headers))


def _is_proxy_header(name: bytes) -> bool:
    return name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIXES)


class TokenRejected(Exception):
    """Error of a request without a valid token.

    `str()` is the reason, for the client.
    """


class ScopeMissing(TokenRejected):
    """The token is valid, and does not permit the request."""


class TokenMissing(TokenRejected):
    """The request has no token, and the server requires one."""


class AuthenticatedCaller(NamedTuple):
    """User of a request, and the scopes of the token."""

    user: str
    scopes: frozenset[str] = frozenset()


class AuthenticationMiddleware:
    """ASGI middleware that verifies the token of every request.

    A loopback server without settings of tokens requires none, except from callers behind a proxy.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._secret = settings.tools_server_secret
        self._audience = settings.tools_server_audience
        self._resource_url = settings.resource_url
        self._requires_token = settings.requires_token
        self._list_resource_urls = lru_cache(8)(settings.list_resource_urls)
        self._gateway = TokenIssuer(_GATEWAY_ISSUER, PublishedKeys(settings.gateway_keys), "the gateway")
        self._oauth_issuer: TokenIssuer | None = None
        self._metadata_url: str | None = None
        if (issuer := settings.tools_server_oauth_issuer) is not None:
            self._oauth_issuer = TokenIssuer(issuer, PublishedKeys(settings.jwks_url), "the authorization server")
            self._metadata_url = str(build_resource_metadata_url(AnyHttpUrl(settings.resource_url)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # httptools keeps blanks after a value, and with them `Mcp-Name` would not match the name in the body.
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if scope["type"] == "http" and scope["path"] != "/health" and not scope["path"].startswith(METADATA_PATH):
            try:
                port = (scope.get("server") or ("", 0))[1] or 0
                headers = dict(scope["headers"])
                if is_definitions_path(scope["path"]):
                    scope[USER_SCOPE_KEY] = await self._authenticate_definer(headers, port)
                else:
                    scope[USER_SCOPE_KEY] = (await self._authenticate_user(headers, port)).user
            except TokenRejected as error:
                await _send_rejection(send, error, self._metadata_url)
                return
        await self._app(scope, receive, send)

    async def _authenticate_definer(self, headers: Mapping[bytes, bytes], port: int) -> str:
        """Return the admin who defines tools.

        The gateway's token for it is required, on loopback, too.
        """
        if not headers.get(b"authorization"):
            raise TokenMissing("a bearer token of the gateway is required")
        caller = await self._authenticate_user(headers, port)
        if DEFINE_SCOPE not in caller.scopes:
            raise ScopeMissing("only admins may define tools, at the gateway's /api/v1/tools/definitions")
        return caller.user

    async def _authenticate_user(self, headers: Mapping[bytes, bytes], port: int) -> "AuthenticatedCaller":
        """Return the user of a request that arrived at a port."""
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if not authorization:
            if self._requires_token or _is_behind_proxy(headers):
                raise TokenMissing("a bearer token is required")
            return AuthenticatedCaller(LOCAL_USER)
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise TokenRejected("the Authorization header must be `Bearer` and a token")
        if self._oauth_issuer is not None and _parse_issuer(token) != _GATEWAY_ISSUER:
            caller = await self._oauth_issuer.verify_token(token, [self._resource_url])
            return AuthenticatedCaller(caller.user)  # scopes of another issuer have other meanings
        audiences = [self._audience, *self._list_resource_urls(port)]
        if _parse_algorithm(token) == "HS256":
            return self._verify_shared_secret_token(token, audiences)
        return await self._gateway.verify_token(token, audiences)

    def _verify_shared_secret_token(self, token: str, audiences: list[str]) -> "AuthenticatedCaller":
        """Verify a token that is signed with TOOLS_SERVER_SECRET.

        This way is deprecated.
        """
        if self._secret is None:
            raise TokenRejected("this server has no TOOLS_SERVER_SECRET to verify a token with")
        return _decode_caller(token, self._secret.get_secret_value(), ["HS256"], audiences, _GATEWAY_ISSUER)


class TokenIssuer:
    """An issuer whose published keys sign tokens for this server.

    `name` is for the caller of a request that is refused.
    """

    def __init__(self, issuer: str, keys: PublishedKeys, name: str) -> None:
        self._issuer = issuer
        self._keys = keys
        self._name = name

    async def verify_token(self, token: str, audiences: list[str]) -> "AuthenticatedCaller":
        """Return the user of a token for one of the audiences.

        Raises:
            TokenRejected: the token is not valid, or the issuer's keys cannot be read.
        """
        try:
            key = await self._keys.find_key(token)
        except KeysUnavailable:
            raise TokenRejected(f"the keys of {self._name} cannot be fetched now") from None
        except (UnknownKey, jwt.PyJWTError):
            raise TokenRejected("the token is not valid") from None
        return _decode_caller(token, key, _ALGORITHMS, audiences, self._issuer)


def _decode_caller(
    token: str, key: str | jwt.PyJWK, algorithms: list[str], audiences: list[str], issuer: str
) -> "AuthenticatedCaller":
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=audiences,
            issuer=issuer,
            leeway=_LEEWAY_SECONDS,
            options=_REQUIRED_CLAIMS,
        )
    except jwt.ExpiredSignatureError:
        raise TokenRejected("the token has expired") from None
    except jwt.PyJWTError:
        raise TokenRejected("the token is not valid") from None
    scope: object = claims.get("scope")
    return AuthenticatedCaller(
        _get_user_claim(claims), frozenset(scope.split()) if isinstance(scope, str) else frozenset()
    )


def is_definitions_path(path: str) -> bool:
    """Return whether a path is one of the definitions'."""
    return path == DEFINITIONS_PATH or path.startswith(f"{DEFINITIONS_PATH}/")


def build_metadata_routes(settings: Settings) -> list[Route]:
    """Build the routes of the protected resource metadata (RFC 9728).

    The list is empty without an authorization server.
    """
    if settings.tools_server_oauth_issuer is None:
        return []
    issuer, resource = map(_URL_ADAPTER.validate_python, (settings.tools_server_oauth_issuer, settings.resource_url))
    return create_protected_resource_routes(resource, [issuer], resource_name="tools-server")


def _parse_algorithm(token: str) -> str | None:
    try:
        return jwt.get_unverified_header(token).get("alg")
    except jwt.PyJWTError:
        return None


def _parse_issuer(token: str) -> object:
    """Return the unverified issuer.

    It only selects the keys to verify the token with.
    """
    try:
        return jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError:
        return None


def _get_user_claim(claims: Mapping[str, object]) -> str:
    user = claims["sub"]
    if not (isinstance(user, str) and user.strip() and len(user) <= _MAX_USER_LENGTH and user.isprintable()):
        raise TokenRejected("the token has no valid `sub` claim")
    return user


def get_current_user(ctx: Context[object]) -> str:
    """Return the user of a tool call.

    The user comes from the call's own HTTP request, because users share connections.
    """
    return get_request_user(ctx.request_context.request)


def get_request_user(request: object) -> str:
    """Return the user of a request.

    The user is `local` over stdio, which has no requests.

    Raises:
        KeyError: the request did not pass `AuthenticationMiddleware`.
    """
    if request is None:
        return LOCAL_USER
    assert isinstance(request, Request)
    return request.scope[USER_SCOPE_KEY]


async def _send_rejection(send: Send, error: TokenRejected, metadata_url: str | None) -> None:
    status, code, problem = 401, "not_authenticated", "invalid_token"
    if isinstance(error, ScopeMissing):
        status, code, problem = 403, "forbidden", "insufficient_scope"
    body = json.dumps({"error": {"code": code, "message": f"Refused: {error}."}}).encode()
    parameters = [] if isinstance(error, TokenMissing) else [f'error="{problem}"']
    parameters += [f'resource_metadata="{metadata_url}"'] if metadata_url else []
    challenge = f"Bearer {', '.join(parameters)}".strip().encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", challenge),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
