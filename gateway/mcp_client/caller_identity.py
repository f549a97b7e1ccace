"""Identifies the calling user to a server: signed token or forwarded header."""

import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial

import httpx2

from gateway.common.concurrency import LruDict
from gateway.domain.messages import Principal

ISSUER = "agent-gateway"
AUDIENCE = "tools-server"
_TOKEN_LIFETIME_SECONDS = 120.0
_MAX_CACHED_USERS = 10_000

_principal: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("mcp_principal", default=None)


@contextlib.contextmanager
def acting_for(principal: Principal) -> Generator[None]:
    """Send this block's requests on behalf of `principal`."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


def forward_header(header: str) -> Callable[[httpx2.Request], Awaitable[None]]:
    """An httpx2 request hook that copies one header of the client's request."""

    async def add_header(request: httpx2.Request) -> None:
        principal = _principal.get()
        value = principal.headers.get(header.lower()) if principal else None
        if value is not None:
            request.headers[header] = value

    return add_header


class TokenSigner:
    """Adds a signed token to requests that names the acting user.

    Signs with HS256, and reuses a token for half its lifetime.
    """

    def __init__(self, secret: str) -> None:
        import jwt  # imported here, as it takes 2 MB that only signers need

        self._encode = partial(jwt.encode, key=secret, algorithm="HS256")
        self._tokens: LruDict[str, tuple[float, str]] = LruDict(_MAX_CACHED_USERS)

    async def add_token(self, request: httpx2.Request) -> None:
        """An httpx2 request hook.

        Discovery and listening act for no user, so they name the gateway itself.
        """
        principal = _principal.get()
        request.headers["Authorization"] = f"Bearer {self._get_token(principal.user if principal else ISSUER)}"

    def _get_token(self, user: str) -> str:
        now = time.time()
        reuse_until, token = self._tokens.get(user, (0.0, ""))
        if now > reuse_until:
            expires_at = now + _TOKEN_LIFETIME_SECONDS
            claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": int(now), "exp": int(expires_at)}
            token = self._encode(claims)
            self._tokens[user] = (now + _TOKEN_LIFETIME_SECONDS / 2, token)
        return token
