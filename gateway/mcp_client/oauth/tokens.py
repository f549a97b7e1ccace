"""Access tokens for requests to protected servers, refreshed before they expire."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator

import httpx2
from pydantic import ValidationError

from gateway.common.concurrency import Backoff, Deadline, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.grants import Grant
from gateway.domain.messages import Principal
from gateway.mcp_client.connection.errors import GrantUnavailable
from gateway.mcp_client.oauth.dpop import DpopKey
from gateway.mcp_client.oauth.https_only import INSUFFICIENT_SCOPE
from gateway.mcp_client.oauth.refresh import GrantRefresher, must_refresh
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

SHARED_OWNER = ""
"""Owner of a grant that all users share."""
_READ_TIMEOUT_SECONDS = 2.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 5.0
GRANT_MAX_AGE_SECONDS = 60.0
_MIN_READ_SECONDS = 1.0
"""Seconds between look-ups for a server that refuses requests without a token."""
_MAX_CHALLENGE_LENGTH = 2_000


def get_grant_owner(server: ServerConfig, principal: Principal | None) -> str:
    """Owner of the grant that a connection uses."""
    return principal.user if principal is not None and server.share == "user" else SHARED_OWNER


class AccessTokenProvider:
    """The access tokens of one owner at one server.

    The stored grant is read once, and again only after `discard_cached()`, a refused request or `max_age_seconds`, in
    case a message about a change was lost. While the database is unavailable, the last known token serves. One worker
    at a time refreshes a token before it expires.

    Without `grants` there are no tokens. `is_refused`: the server refused the latest request for lack of a valid token;
    `challenge` is the `WWW-Authenticate` header of that answer.
    """

    def __init__(
        self,
        grants: GrantStore | None,
        server: ServerConfig,
        owner: str,
        *,
        max_age_seconds: float = GRANT_MAX_AGE_SECONDS,
    ) -> None:
        self._grants = grants if server.allows_sign_in else None
        self._refresher = None if self._grants is None else GrantRefresher(self._grants, server, owner)
        self._max_age_seconds = max_age_seconds
        self._grant_key = (server.name, owner, server.url)
        self._grant: Grant | None = None
        self._must_read = True
        self._has_changed = False
        """Whether the grant has changed since it was read."""
        self._read_at = -math.inf
        self._updating = asyncio.Lock()
        self._refreshes = TaskSet(f"mcp token {server.name}")
        self._failure: httpx2.TransportError | None = None
        self._retry_at = -math.inf
        self._backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        self.is_refused = False
        self.challenge = ""
        self._stored_challenge = ""
        self._key: DpopKey | None = None

    @property
    def can_sign_in(self) -> bool:
        """Whether a user can sign in."""
        return self._grants is not None

    def discard_cached(self) -> None:
        """Read the stored grant again before the next request.

        Its token serves until that succeeds.
        """
        self._must_read = self._has_changed = True
        self._stored_challenge = ""

    @property
    def key(self) -> DpopKey | None:
        """The key to which the tokens are bound, if any."""
        pem = self._grant.dpop_key if self._grant is not None else None
        if pem is None:
            self._key = None
        elif self._key is None or self._key.pem != pem:
            self._key = DpopKey(pem)
        return self._key

    def admit_caller(self, principal: Principal) -> None:
        """Take note of a caller's own token, before its request.

        Raises:
            TokenUnavailable: there can be no token for this caller.
        """

    async def get_token(self) -> str | None:
        """Return the token to send.

        Return None if there is none, or none is known because the database is unavailable.
        """
        is_known = self._read_at > -math.inf
        is_reading_change = self._has_changed and self._updating.locked()
        if is_reading_change or (self._needs_update() and not (is_known and self._updating.locked())):
            async with self._updating:
                if self._needs_update():
                    with contextlib.suppress(httpx2.TransportError):  # logged; a server that needs a token refuses
                        await self._update(None)
        return self._grant and self._grant.access_token

    async def replace_token(self, refused_token: str | None) -> str | None:
        """Return another token than the one that the server refused.

        Return None if a user must sign in. `refused_token` is None if the request had no token.

        Raises:
            GrantUnavailable: the stored grant cannot be read now.
            httpx2.TransportError: the authorization server does not work now.
        """
        if self._grants is None:
            return None
        async with self._updating:
            if (token := self._get_other_token(refused_token)) is not None:
                return token  # another request has updated it
            if refused_token is None:
                self._must_read = self._must_read or time.monotonic() - self._read_at > _MIN_READ_SECONDS
            try:
                await self._update(refused_token)
            except httpx2.TransportError:
                if self._get_other_token(refused_token) is None:
                    raise
        return self._get_other_token(refused_token)

    async def report_refusal(self, challenge: str) -> None:
        """Remember the challenge of a refused request.

        One that asks for further scopes is stored, so that a sign-in at any worker asks for them.
        """
        self.is_refused, self.challenge = True, challenge[:_MAX_CHALLENGE_LENGTH]
        if self._grants is None or INSUFFICIENT_SCOPE not in challenge or self.challenge == self._stored_challenge:
            return
        try:
            async with Deadline.after(_READ_TIMEOUT_SECONDS).limit():
                await self._grants.save_challenge(*self._grant_key, self.challenge)
        except (GatewayError, TimeoutError) as error:
            log.warning("oauth_challenge_not_stored", server=self._grant_key[0], error=type(error).__name__)
        else:
            self._stored_challenge = self.challenge

    def _get_other_token(self, refused_token: str | None) -> str | None:
        token = self._grant and self._grant.access_token
        return None if token == refused_token else token

    def _needs_update(self) -> bool:
        if self._grants is None or time.monotonic() < self._retry_at:
            return False
        return self._must_read or self._is_old or self._is_unsaved or must_refresh(self._grant, None)

    @property
    def _is_unsaved(self) -> bool:
        return self._refresher is not None and self._refresher.unsaved is not None

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > self._max_age_seconds

    async def _update(self, refused_token: str | None) -> None:
        """Read and refresh the grant.

        In the pause after a failure, raise its error again.

        Raises:
            GrantUnavailable, httpx2.TransportError: see `replace_token`.
        """
        if self._failure is not None and time.monotonic() < self._retry_at:
            raise type(self._failure)(str(self._failure))
        try:
            await self._read_and_refresh(refused_token)
        except (GatewayError, TimeoutError) as error:
            self._failure, cause = GrantUnavailable("the stored sign-in cannot be read now"), error
        except (httpx2.TransportError, ValidationError, ValueError) as error:
            self._failure, cause = httpx2.ConnectError("the authorization server does not work now"), error
        else:
            self._failure = None
            self._backoff.reset()
            return
        self._retry_at = time.monotonic() + self._backoff.next_delay()
        log.warning("access_token_not_updated", server=self._grant_key[0], error=type(cause).__name__)
        raise self._failure from cause

    async def _read_and_refresh(self, refused_token: str | None) -> None:
        assert self._grants is not None
        if (self._must_read or self._is_old) and not self._is_unsaved:
            self._must_read = False  # before the read, so that a change during the read is not missed
            try:
                async with Deadline.after(_READ_TIMEOUT_SECONDS).limit():
                    self._grant = await self._grants.get_grant(*self._grant_key)
            except BaseException:
                self._must_read = True
                raise
            finally:
                self._has_changed = False
            self._read_at = time.monotonic()
        if self._is_unsaved or must_refresh(self._grant, refused_token):
            await self._refresh_to_end(refused_token)

    async def _refresh_to_end(self, refused_token: str | None) -> None:
        """Refresh the grant, even if the request is cancelled.

        The authorization server may have used up the old tokens by then.
        """
        refresher, errors = self._refresher, list[Exception]()
        assert refresher is not None

        async def refresh() -> None:
            try:
                self._grant = await refresher.refresh(refused_token)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
                if refresher.unsaved is not None:
                    self._grant = refresher.unsaved.grant

        await asyncio.shield(self._refreshes.spawn(refresh()))
        if errors:
            raise errors[0]


class AuthorizedTransport(httpx2.AsyncBaseTransport):
    """Adds the access token to each request.

    Retries a refused request once with a new token.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, tokens: AccessTokenProvider) -> None:
        self._inner = inner
        self._tokens = tokens

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        token = await self._tokens.get_token()
        response = await self._send_authorized(request, token)
        if response.status_code == 401:
            response = await self._retry_refused(request, response, token)
        challenge = response.headers.get("WWW-Authenticate", "")
        lacks_scope = response.status_code == 403 and INSUFFICIENT_SCOPE in challenge
        if response.status_code == 401 or lacks_scope:
            async with _closing_on_failure(response):
                await self._tokens.report_refusal(challenge)
        elif response.is_success or (request.method == "POST" and response.status_code >= 500):
            self._tokens.is_refused = False  # another failure is not to be told as this one
        return response

    async def _retry_refused(
        self, request: httpx2.Request, response: httpx2.Response, token: str | None
    ) -> httpx2.Response:
        """Send a refused request again if there is another token.

        Else return the refusal.
        """
        async with _closing_on_failure(response):
            other_token = await self._tokens.replace_token(token)
        if other_token is None:
            return response
        await response.aclose()
        return await self._send_authorized(request, other_token)

    async def _send_authorized(self, request: httpx2.Request, token: str | None) -> httpx2.Response:
        if token is not None and (key := self._tokens.key) is not None:
            return await key.send(self._inner, request, token)
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextlib.asynccontextmanager
async def _closing_on_failure(response: httpx2.Response) -> AsyncGenerator[None]:
    """Close a response that is not returned, also after a cancellation.

    Its connection would stay open.
    """
    try:
        yield
    except BaseException:
        await response.aclose()
        raise
