"""Who is calling: a token of the gateway's, or of a configured authorization server, names the user; callers on this
machine need none and are `local`."""

import asyncio
import json
from typing import Any

import jwt
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tools_server.config import Settings

LOCAL_USER = "local"
_USER = "tools_server.user"
_ISSUER = "agent-gateway"
_MOST_NAME = 256
_LEEWAY_SECONDS = 5
_KEYS_SECONDS, _KEYS_LIFE = 5, 3600
_ALGORITHMS = ["RS256", "ES256", "PS256", "EdDSA"]
_REQUIRED = {"require": ["sub", "aud", "iss", "iat", "exp"]}
# Clients compare issuers as text: none may get a slash at its end that it does not have.
_AS_WRITTEN = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))
METADATA = "/.well-known/oauth-protected-resource"


class TokenRefused(Exception):
    """Why a request may not pass, for its sender."""


class TokenMissing(TokenRefused):
    """There is none, and one is needed."""


class Authentication:
    """ASGI middleware: verifies the token of every request that brings one, and demands one off this machine."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._secret = settings.tools_server_secret
        self._audience = settings.tools_server_audience
        self._demanded = not settings.on_loopback
        self._authority = _Authority(settings) if settings.tools_server_oauth_issuer else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # httptools leaves blanks behind a value, which are no part of it: `Mcp-Name` must match the body's name.
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if scope["type"] == "http" and scope["path"] != "/health" and not scope["path"].startswith(METADATA):
            try:
                scope[_USER] = await self._user(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
            except TokenRefused as error:
                await _refuse(send, error, self._authority)
                return
        await self._app(scope, receive, send)

    async def _user(self, authorization: str) -> str:
        if not authorization:
            if self._demanded:
                raise TokenMissing("a bearer token is required")
            return LOCAL_USER
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRefused("the Authorization header must be `Bearer` and a token")
        if self._authority is not None and _algorithm(token) != "HS256":
            return await self._authority.user(token.strip())
        if self._secret is None:
            raise TokenRefused("this server has no TOOLS_SERVER_SECRET to verify a token with")
        return self._verified(token.strip(), self._secret.get_secret_value())

    def _verified(self, token: str, secret: str) -> str:
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=_ISSUER,
                leeway=_LEEWAY_SECONDS,
                options=_REQUIRED,  # type: ignore[arg-type]
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("the token has expired") from None
        except jwt.InvalidTokenError:
            raise TokenRefused("the token is not valid") from None
        return _named(claims)


class _Authority:
    """An authorization server whose tokens count here: those that it issued for this very server."""

    def __init__(self, settings: Settings) -> None:
        assert settings.tools_server_oauth_issuer is not None
        self._issuer = settings.tools_server_oauth_issuer
        self._resource = settings.resource_url
        self._keys = jwt.PyJWKClient(settings.jwks_url, lifespan=_KEYS_LIFE, timeout=_KEYS_SECONDS)
        self.metadata_url = str(build_resource_metadata_url(AnyHttpUrl(self._resource)))

    async def user(self, token: str) -> str:
        """Raises:
        TokenRefused: it is none of those, or its keys cannot be had.
        """
        try:
            key = await asyncio.to_thread(self._keys.get_signing_key_from_jwt, token)
            claims = jwt.decode(
                token, key, algorithms=_ALGORITHMS, audience=self._resource, issuer=self._issuer,
                leeway=_LEEWAY_SECONDS, options=_REQUIRED,  # type: ignore[arg-type]
            )  # fmt: skip
        except jwt.PyJWKClientConnectionError:
            raise TokenRefused("the authorization server's keys cannot be had now") from None
        except jwt.ExpiredSignatureError:
            raise TokenRefused("the token has expired") from None
        except jwt.PyJWTError:
            raise TokenRefused("the token is not valid") from None
        return _named(claims)


def metadata_routes(settings: Settings) -> list[Route]:
    """Where clients read which authorization server to go to (RFC 9728); nothing without one."""
    if settings.tools_server_oauth_issuer is None:
        return []
    issuer, resource = map(_AS_WRITTEN.validate_python, (settings.tools_server_oauth_issuer, settings.resource_url))
    return create_protected_resource_routes(resource, [issuer], resource_name="tools-server")


def _algorithm(token: str) -> str | None:
    try:
        return jwt.get_unverified_header(token.strip()).get("alg")
    except jwt.PyJWTError:
        return None


def _named(claims: dict[str, Any]) -> str:
    user: str = claims["sub"]
    if not (user.strip() and len(user) <= _MOST_NAME and user.isprintable()):
        raise TokenRefused("the token names no user")
    return user


def current_user(ctx: Context[Any]) -> str:
    """The user for whom this very call is made: read off its own HTTP request, as connections are shared.

    See `user_of`.
    """
    return user_of(ctx.request_context.request)


def user_of(request: object) -> str:
    """Only stdio has no request. One that has not passed the middleware is an error, never `local`."""
    if request is None:
        return LOCAL_USER
    assert isinstance(request, Request)
    return request.scope[_USER]


async def _refuse(send: Send, error: TokenRefused, authority: _Authority | None) -> None:
    body = json.dumps({"error": {"code": "not_authenticated", "message": f"Refused: {error}."}}).encode()
    told = [] if isinstance(error, TokenMissing) else ['error="invalid_token"']
    told += [f'resource_metadata="{authority.metadata_url}"'] if authority else []
    challenge = f"Bearer {', '.join(told)}".strip().encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", challenge),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
