"""A token that is fetched before it expires."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import httpx2

from gateway.common.concurrency import Backoff
from gateway.common.logging import get_logger
from gateway.mcp_client.oauth.errors import TokenRefused
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken

log = get_logger(__name__)

_LEEWAY_SECONDS = 30.0
DEFAULT_LIFETIME_SECONDS = 300.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 30.0
_MIN_REPLACE_SECONDS = 5.0
"""Seconds between replacements of tokens that the server refuses."""


class RenewedToken:
    """A token in memory, renewed by requests.

    All requests wait for the same fetch. After a failure, requests fail in the same way until the end of a pause,
    except while the earlier token is still valid.
    """

    def __init__(self, server: str, fetch: Callable[[], Awaitable[IssuedToken]]) -> None:
        self._server = server
        self._fetch = fetch
        self._fetching = asyncio.Lock()
        self._token: str | None = None
        self._renew_at = self._expires_at = self._replaced_at = -math.inf
        self._pause_until = -math.inf
        self._pause = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        self._failure: TokenRefused | httpx2.ConnectError | None = None

    async def get(self) -> str | None:
        """Return the token.

        Raises:
            TokenRefused, httpx2.ConnectError: there is none now.
        """
        if time.monotonic() >= self._renew_at:
            async with self._fetching:
                if time.monotonic() >= self._renew_at:
                    try:
                        await self._renew()
                    except (TokenRefused, httpx2.ConnectError):
                        if time.monotonic() >= self._expires_at:
                            raise
        return self._token

    async def replace(self, refused_token: str | None) -> str | None:
        """Return another token than the refused one; None if there is none.

        Raises:
            TokenRefused, httpx2.ConnectError: see `get`.
        """
        async with self._fetching:
            if self._token == refused_token:
                if time.monotonic() - self._replaced_at < _MIN_REPLACE_SECONDS:
                    return None
                self._replaced_at = time.monotonic()
                await self._renew()
        return None if self._token == refused_token else self._token

    async def _renew(self) -> None:
        if self._failure is not None and time.monotonic() < self._pause_until:
            raise type(self._failure)(*self._failure.args)
        try:
            token = await self._fetch()
        except (TokenRefused, httpx2.ConnectError) as error:
            self._failure = error
            self._pause_until = time.monotonic() + self._pause.next_delay()
            kind = str(error) if isinstance(error, TokenRefused) else type(error).__name__
            log.warning("access_token_not_issued", server=self._server, error=kind)
            raise
        self._failure = None
        self._pause.reset()
        lifetime = DEFAULT_LIFETIME_SECONDS if token.expires_in is None else max(token.expires_in, 1.0)
        now = time.monotonic()
        self._token, self._expires_at = token.access_token, now + lifetime
        self._renew_at = now + max(lifetime - _LEEWAY_SECONDS, lifetime / 2)
