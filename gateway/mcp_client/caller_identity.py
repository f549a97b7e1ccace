"""Identifies the calling user to a server: signed token or forwarded header."""

import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial

import httpx2

from gateway.common.concurrency import LruDict
from gateway.domain.messages import JsonObject, Principal
from gateway.mcp_client.identity_keys import IdentityKeys
from gateway_runtime.telemetry.trace_context import get_trace_headers

ISSUER = "agent-gateway"
_TOKEN_LIFETIME_SECONDS = 120.0
_MAX_CACHED_USERS = 10_000
_UNAUTHORIZED = 401

_principal: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("mcp_principal", default=None)


@contextlib.contextmanager
def acting_for(principal: Principal) -> Generator[None]:
    """Send this block's requests on behalf of `principal`."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


def get_acting_principal() -> Principal | None:
    """Return the principal that this request is sent for, if any."""
    return _principal.get()


def forward_header(header: str) -> Callable[[httpx2.Request], Awaitable[None]]:
    """An httpx2 request hook that copies one header of the client's request."""

    async def add_header(request: httpx2.Request) -> None:
        principal = _principal.get()
        value = principal.headers.get(header.lower()) if principal else None
        if value is not None:
            request.headers[header] = value

    return add_header


async def add_trace_headers(request: httpx2.Request) -> None:
    """An httpx2 request hook: the server continues the trace."""
    request.headers.update(get_trace_headers())


class TokenSigner:
    """Creates tokens that name the acting user, for one server.

    `sign` signs the claims. Reuses a token for half its lifetime. `scope` permits more than calls of tools.
    """

    def __init__(self, sign: Callable[[JsonObject], str], audience: str, scope: str | None = None) -> None:
        self._sign = sign
        self._audience = audience
        self._scope = scope
        self._tokens: LruDict[str, tuple[float, str]] = LruDict(_MAX_CACHED_USERS)

    async def add_token(self, request: httpx2.Request) -> None:
        """An httpx2 request hook.

        Discovery and listening act for no user, so they name the gateway itself.
        """
        principal = _principal.get()
        request.headers["Authorization"] = f"Bearer {self.get_token(principal.user if principal else ISSUER)}"

    def get_token(self, user: str) -> str:
        """Return a token for a user."""
        now = time.time()
        reuse_until, token = self._tokens.get(user, (0.0, ""))
        if now > reuse_until:
            expires_at = now + _TOKEN_LIFETIME_SECONDS
            claims = {"iss": ISSUER, "aud": self._audience, "sub": user, "iat": int(now), "exp": int(expires_at)}
            claims |= {"scope": self._scope} if self._scope else {}
            token = self._sign(claims)
            self._tokens[user] = (now + _TOKEN_LIFETIME_SECONDS / 2, token)
        return token


class TokenIssuer:
    """Creates tokens for all servers.

    Each server has its own audience. `secret` is TOOLS_SERVER_SECRET, which is deprecated: it also signs, for servers
    that refuse the key pair's tokens.
    """

    def __init__(self, keys: IdentityKeys | None, secret: str | None = None) -> None:
        self._keys = keys
        self._secret = secret

    def create_transport(
        self, inner: httpx2.AsyncBaseTransport, audience: str, scope: str | None = None
    ) -> httpx2.AsyncBaseTransport:
        """Add a token to every request of a transport."""
        signers: list[TokenSigner] = []
        if self._keys is not None:
            signers.append(TokenSigner(self._keys.sign, audience, scope))
        if self._secret is not None:
            signers.append(TokenSigner(partial(sign_with_secret, self._secret), audience, scope))
        return IdentityTransport(inner, signers) if signers else inner


class IdentityTransport(httpx2.AsyncBaseTransport):
    """Adds a token to each request.

    After a refusal the next signer's token is tried. The connection keeps the signer whose token was accepted.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, signers: list[TokenSigner]) -> None:
        self._inner = inner
        self._signers = signers

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        for signer in self._signers[:-1]:
            await signer.add_token(request)
            response = await self._inner.handle_async_request(request)
            if response.status_code != _UNAUTHORIZED:
                return response
            await response.aclose()
        signer = self._signers[-1]
        await signer.add_token(request)
        response = await self._inner.handle_async_request(request)
        if response.status_code != _UNAUTHORIZED:
            self._signers = [signer]
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def sign_with_secret(secret: str, claims: JsonObject) -> str:
    """Sign the claims of a token with a shared secret.

    The secret also lets the verifier sign.
    """
    import jwt  # imported here, as it takes 2 MB that only signers need

    return jwt.encode(claims, secret, "HS256")
