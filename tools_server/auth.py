"""Who is calling: a token of the gateway's names the user; callers on this machine need none and are `local`."""

import json
from typing import Any

import jwt
from mcp.server.mcpserver import Context
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tools_server.config import Settings

LOCAL_USER = "local"
_USER = "tools_server.user"
_ISSUER = "agent-gateway"
_MOST_NAME = 256
_LEEWAY_SECONDS = 5


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # httptools leaves blanks behind a value, which are no part of it: `Mcp-Name` must match the body's name.
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if scope["type"] == "http" and scope["path"] != "/health":
            try:
                scope[_USER] = self._user(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
            except TokenRefused as error:
                await _refuse(send, error)
                return
        await self._app(scope, receive, send)

    def _user(self, authorization: str) -> str:
        if not authorization:
            if self._demanded:
                raise TokenMissing("a bearer token is required")
            return LOCAL_USER
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRefused("the Authorization header must be `Bearer` and a token")
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
                options={"require": ["sub", "aud", "iss", "iat", "exp"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("the token has expired") from None
        except jwt.InvalidTokenError:
            raise TokenRefused("the token is not valid") from None
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


async def _refuse(send: Send, error: TokenRefused) -> None:
    body = json.dumps({"error": {"code": "not_authenticated", "message": f"Refused: {error}."}}).encode()
    challenge = b"Bearer" if isinstance(error, TokenMissing) else b'Bearer error="invalid_token"'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", challenge),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
