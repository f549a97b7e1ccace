"""Access tokens for requests to protected servers, refreshed before they expire."""

import asyncio
import contextlib
import math
import time
from contextlib import AsyncExitStack

import httpx2
import msgspec
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import ValidationError

from gateway.common.concurrency import Backoff, Deadline, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.messages import Grant, Principal
from gateway.mcp_client.connection.errors import GrantUnavailable
from gateway.mcp_client.oauth.https_only import INSUFFICIENT_SCOPE, HttpsOnlyTransport
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import GrantStore

log = get_logger(__name__)

SHARED_OWNER = ""
"""Owner of a grant that all users share."""
INVALID_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")
"""OAuth errors of an invalid client registration.

The gateway's registration as a client is no longer valid.
"""
REQUEST_TIMEOUT_SECONDS = 15.0
_READ_TIMEOUT_SECONDS, _LOCK_TIMEOUT_SECONDS = 2.0, 10.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 5.0
GRANT_MAX_AGE_SECONDS = 60.0
_MIN_READ_SECONDS = 1.0
"""Seconds between look-ups for a server that refuses requests without a token."""
_REFRESH_AHEAD_SECONDS = 60.0
_MAX_CHALLENGE_LENGTH = 2_000


def get_grant_owner(server: ServerConfig, principal: Principal | None) -> str:
    """Owner of the grant that a connection uses."""
    return principal.user if principal is not None and server.share == "user" else SHARED_OWNER


def get_expiry(token: OAuthToken) -> float | None:
    """Unix time at which a new token expires, if it does."""
    return None if token.expires_in is None else time.time() + token.expires_in


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
        self._server_url = server.url
        self._max_age_seconds = max_age_seconds
        self._grant_key = (server.name, owner, server.url)
        self._grant: Grant | None = None
        self._unsaved: _UnsavedGrant | None = None
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

    @property
    def can_sign_in(self) -> bool:
        """Whether a user can sign in."""
        return self._grants is not None

    def discard_cached(self) -> None:
        """Read the stored grant again before the next request.

        Its token serves until that succeeds.
        """
        self._must_read = self._has_changed = True

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

    def _get_other_token(self, refused_token: str | None) -> str | None:
        token = self._grant and self._grant.access_token
        return None if token == refused_token else token

    def _needs_update(self) -> bool:
        if self._grants is None or time.monotonic() < self._retry_at:
            return False
        return self._must_read or self._is_old or self._unsaved is not None or _must_refresh(self._grant, None)

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
        if (self._must_read or self._is_old) and self._unsaved is None:
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
        if self._unsaved is not None or _must_refresh(self._grant, refused_token):
            await self._refresh_to_end(self._grants, refused_token)

    async def _refresh_to_end(self, grants: GrantStore, refused_token: str | None) -> None:
        """Refresh the grant, even if the request is cancelled.

        The authorization server may have used up the old tokens by then.
        """
        errors: list[Exception] = []

        async def refresh() -> None:
            try:
                await self._refresh_stored_grant(grants, refused_token)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

        await asyncio.shield(self._refreshes.spawn(refresh()))
        if errors:
            raise errors[0]

    async def _refresh_stored_grant(self, grants: GrantStore, refused_token: str | None) -> None:
        """Refresh the grant while no other worker does.

        If the database refuses a refreshed grant, this object holds it and stores it at the next use.
        """
        unsaved = self._unsaved
        async with AsyncExitStack() as stack:
            async with Deadline.after(_LOCK_TIMEOUT_SECONDS).limit():
                transaction = await stack.enter_async_context(grants.begin_transaction(*self._grant_key))
            stored = transaction.grant
            grant = unsaved.grant if unsaved is not None and unsaved.replaces == stored else stored
            if grant is not None and _must_refresh(grant, refused_token):
                grant = await _refresh_grant(grant, self._server_url)
            transaction.grant = self._grant = grant
            self._unsaved = None if grant == stored else _UnsavedGrant(grant, stored)
        self._unsaved = None


class _UnsavedGrant(msgspec.Struct, frozen=True):
    """A refreshed grant that could not be stored.

    It also has the stored grant that it replaces, whose tokens are used up.
    """

    grant: Grant | None
    replaces: Grant | None


def _must_refresh(grant: Grant | None, refused_token: str | None) -> bool:
    """Return whether a grant's token is refused or about to expire."""
    if grant is None or grant.access_token is None:
        return False
    is_expiring = grant.expires_at is not None and time.time() >= grant.expires_at - _REFRESH_AHEAD_SECONDS
    return is_expiring or grant.access_token == refused_token


async def _refresh_grant(grant: Grant, server_url: str) -> Grant | None:
    """The grant with a new access token.

    Without tokens if a user must sign in again.

    None: the client's registration is no longer valid either.
    """
    without_tokens = msgspec.structs.replace(grant, access_token=None, refresh_token=None, expires_at=None)
    if grant.refresh_token is None or grant.token_endpoint is None:
        return without_tokens
    response = await _request_refresh(grant, grant.refresh_token, grant.token_endpoint, server_url)
    if response.status_code >= 500 or response.status_code == 429:
        raise httpx2.ConnectError("the authorization server does not work now")
    if response.status_code != 200:
        error = _parse_oauth_error(response)
        log.warning("oauth_refresh_refused", status=response.status_code, error=error)
        return None if error in INVALID_CLIENT_ERRORS else without_tokens
    token = OAuthToken.model_validate_json(response.content)
    return msgspec.structs.replace(
        grant,
        access_token=token.access_token,
        refresh_token=token.refresh_token or grant.refresh_token,
        expires_at=get_expiry(token),
        scope=token.scope or grant.scope,
    )


async def _request_refresh(grant: Grant, refresh_token: str, endpoint: str, server_url: str) -> httpx2.Response:
    client = OAuthClientInformationFull.model_validate(grant.client)
    form_fields = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": client.client_id or ""}
    if grant.resource is not None:
        form_fields["resource"] = grant.resource
    basic_auth = None
    if client.client_secret and client.token_endpoint_auth_method == "client_secret_basic":  # noqa: S105
        basic_auth = httpx2.BasicAuth(client.client_id or "", client.client_secret)
    elif client.client_secret:
        form_fields["client_secret"] = client.client_secret
    transport = HttpsOnlyTransport(server_url)
    async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, transport=transport, auth=basic_auth) as http:
        return await http.post(endpoint, data=form_fields)


def _parse_oauth_error(response: httpx2.Response) -> str:
    try:
        return str(response.json().get("error", ""))[:100]
    except (ValueError, AttributeError):
        return ""


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
            self._tokens.is_refused, self._tokens.challenge = True, challenge[:_MAX_CHALLENGE_LENGTH]
        elif response.is_success:
            self._tokens.is_refused = False
        return response

    async def _retry_refused(
        self, request: httpx2.Request, response: httpx2.Response, token: str | None
    ) -> httpx2.Response:
        """Send a refused request again if there is another token.

        Else return the refusal.
        """
        try:
            other_token = await self._tokens.replace_token(token)
        except httpx2.TransportError:
            await response.aclose()
            raise
        if other_token is None:
            return response
        await response.aclose()
        return await self._send_authorized(request, other_token)

    async def _send_authorized(self, request: httpx2.Request, token: str | None) -> httpx2.Response:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
