"""Authentication by a token of the gateway or authorization server.

The authorization server is configured. The token's `sub` is the user. While the server listens on a loopback address,
callers without a token are `local`.
"""

import asyncio
import json
from collections.abc import Mapping

import jwt
from jwt.types import Options
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tools_server.config import Settings

LOCAL_USER = "local"
USER_SCOPE_KEY = "tools_server.user"
_ISSUER = "agent-gateway"
_MAX_USER_LENGTH = 256
_LEEWAY_SECONDS = 5
_KEYS_TIMEOUT_SECONDS, _KEYS_LIFETIME_SECONDS = 5, 3600
_ALGORITHMS = ["RS256", "ES256", "PS256", "EdDSA"]
# Clients compare issuers as text, so pydantic must not append a slash.
_URL_ADAPTER = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))
METADATA_PATH = "/.well-known/oauth-protected-resource"


_REQUIRED_CLAIMS: Options = {"require": ["sub", "aud", "iss", "iat", "exp"]}


class TokenRejected(Exception):
    """Error of a request without a valid token.

    `str()` is the reason, for the client.
    """


class TokenMissing(TokenRejected):
    """The request has no token, and the server requires one."""


class AuthenticationMiddleware:
    """ASGI middleware that verifies the token of every request.

    A loopback server requires none.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._secret = settings.tools_server_secret
        self._audience = settings.tools_server_audience
        self._requires_token = not settings.on_loopback
        self._oauth_issuer = OAuthIssuer(settings) if settings.tools_server_oauth_issuer else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # httptools keeps blanks after a value, and with them `Mcp-Name` would not match the name in the body.
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if scope["type"] == "http" and scope["path"] != "/health" and not scope["path"].startswith(METADATA_PATH):
            try:
                scope[USER_SCOPE_KEY] = await self._authenticate_user(
                    dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
                )
            except TokenRejected as error:
                await _send_rejection(send, error, self._oauth_issuer)
                return
        await self._app(scope, receive, send)

    async def _authenticate_user(self, authorization: str) -> str:
        if not authorization:
            if self._requires_token:
                raise TokenMissing("a bearer token is required")
            return LOCAL_USER
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRejected("the Authorization header must be `Bearer` and a token")
        if self._oauth_issuer is not None and _parse_algorithm(token) != "HS256":
            return await self._oauth_issuer.verify_token(token.strip())
        if self._secret is None:
            raise TokenRejected("this server has no TOOLS_SERVER_SECRET to verify a token with")
        return self._verify_shared_secret_token(token.strip(), self._secret.get_secret_value())

    def _verify_shared_secret_token(self, token: str, secret: str) -> str:
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=_ISSUER,
                leeway=_LEEWAY_SECONDS,
                options=_REQUIRED_CLAIMS,
            )
        except jwt.ExpiredSignatureError:
            raise TokenRejected("the token has expired") from None
        except jwt.InvalidTokenError:
            raise TokenRejected("the token is not valid") from None
        return _get_user_claim(claims)


class OAuthIssuer:
    """An authorization server.

    Its tokens are accepted if their audience is this server.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.tools_server_oauth_issuer is not None
        self._issuer = settings.tools_server_oauth_issuer
        self._resource = settings.resource_url
        self._keys = jwt.PyJWKClient(settings.jwks_url, lifespan=_KEYS_LIFETIME_SECONDS, timeout=_KEYS_TIMEOUT_SECONDS)
        self.metadata_url = str(build_resource_metadata_url(AnyHttpUrl(self._resource)))

    async def verify_token(self, token: str) -> str:
        """Return the user of a token.

        Raises:
            TokenRejected: the token is not valid, or the issuer's keys cannot be fetched.
        """
        try:
            key = await asyncio.to_thread(self._keys.get_signing_key_from_jwt, token)
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._resource,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options=_REQUIRED_CLAIMS,
            )
        except jwt.PyJWKClientConnectionError:
            raise TokenRejected("the authorization server's keys cannot be fetched now") from None
        except jwt.ExpiredSignatureError:
            raise TokenRejected("the token has expired") from None
        except jwt.PyJWTError:
            raise TokenRejected("the token is not valid") from None
        return _get_user_claim(claims)


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
        return jwt.get_unverified_header(token.strip()).get("alg")
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


async def _send_rejection(send: Send, error: TokenRejected, issuer: OAuthIssuer | None) -> None:
    body = json.dumps({"error": {"code": "not_authenticated", "message": f"Refused: {error}."}}).encode()
    parameters = [] if isinstance(error, TokenMissing) else ['error="invalid_token"']
    parameters += [f'resource_metadata="{issuer.metadata_url}"'] if issuer else []
    challenge = f"Bearer {', '.join(parameters)}".strip().encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", challenge),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
