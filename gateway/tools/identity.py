"""For whom a call is made: a short-lived signed token, never the client's own credential."""

import contextlib
import contextvars
import time
from collections import OrderedDict
from collections.abc import Generator

import httpx2
import jwt

ISSUER = "agent-gateway"
AUDIENCE = "tools-server"
_LIFETIME = 120.0
_MOST_USERS = 10_000

_user: contextvars.ContextVar[str | None] = contextvars.ContextVar("mcp_user", default=None)


@contextlib.contextmanager
def acting_for(user: str) -> Generator[None]:
    """Requests made inside the block are the user's, over whatever shared connection they go."""
    token = _user.set(user)
    try:
        yield
    finally:
        _user.reset(token)


class TokenSigner:
    """Signs who is acting, HS256, and adds it to requests. A token serves until half its life is over."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def add_token(self, request: httpx2.Request) -> None:
        """An httpx2 request hook. Discovery and listening are for no user: they are the gateway's own."""
        request.headers["Authorization"] = f"Bearer {self._token(_user.get() or ISSUER)}"

    def _token(self, user: str) -> str:
        now = time.time()
        good_until, token = self._tokens.get(user, (0.0, ""))
        if now > good_until:
            claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": int(now), "exp": int(now + _LIFETIME)}
            token = jwt.encode(claims, self._secret, algorithm="HS256")
            self._tokens[user] = (now + _LIFETIME / 2, token)
        self._tokens.move_to_end(user)
        if len(self._tokens) > _MOST_USERS:
            self._tokens.popitem(last=False)
        return token
