"""For whom a call is made: a short-lived signed token, never the client's own credential."""

import contextlib
import contextvars
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import httpx2

from gateway.domain.messages import Principal

ISSUER = "agent-gateway"
AUDIENCE = "tools-server"
_LIFETIME = 120.0
_MOST_USERS = 10_000

_principal: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("mcp_principal", default=None)


@contextlib.contextmanager
def acting_for(principal: Principal) -> Generator[None]:
    """Requests made inside the block are the principal's, over whatever shared connection they go."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


def forward(header: str) -> Callable[[httpx2.Request], Any]:
    """An httpx2 request hook that passes a header of the client's on."""

    async def add(request: httpx2.Request) -> None:
        principal = _principal.get()
        value = principal.headers.get(header.lower()) if principal else None
        if value is not None:
            request.headers[header] = value

    return add


class TokenSigner:
    """Signs who is acting, HS256, and adds it to requests. A token serves until half its life is over."""

    def __init__(self, secret: str) -> None:
        import jwt  # here, as it takes 2 MB that only signers need

        self._sign = partial(jwt.encode, key=secret, algorithm="HS256")
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def add_token(self, request: httpx2.Request) -> None:
        """An httpx2 request hook. Discovery and listening are for no user: they are the gateway's own."""
        principal = _principal.get()
        request.headers["Authorization"] = f"Bearer {self._token(principal.user if principal else ISSUER)}"

    def _token(self, user: str) -> str:
        now = time.time()
        good_until, token = self._tokens.get(user, (0.0, ""))
        if now > good_until:
            claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": int(now), "exp": int(now + _LIFETIME)}
            token = self._sign(claims)
            self._tokens[user] = (now + _LIFETIME / 2, token)
        self._tokens.move_to_end(user)
        if len(self._tokens) > _MOST_USERS:
            self._tokens.popitem(last=False)
        return token
