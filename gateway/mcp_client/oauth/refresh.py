"""Refreshes a stored grant, by one worker at a time.

A claim in the database excludes the other workers. Neither a session nor a lock is held while the authorization server
answers, however slow it is.
"""

import asyncio
import contextlib
import time

import httpx2
import msgspec
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from gateway.common.concurrency import Backoff, Deadline
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.grants import Grant
from gateway.domain.messages import JsonObject
from gateway.mcp_client.oauth.client_authentication import add_client_authentication
from gateway.mcp_client.oauth.dpop import DpopKey, DpopTransport
from gateway.mcp_client.oauth.https_only import REQUEST_TIMEOUT_SECONDS, HttpsOnlyTransport
from gateway.mcp_client.oauth.lenient_answers import LenientTransport
from gateway.ports.grants import GrantStore, RefreshClaim
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

INVALID_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")
"""OAuth errors of an invalid client registration.

The gateway's registration as a client is no longer valid.
"""
REFRESH_TIMEOUT_SECONDS = 15.0
"""Time limit of a whole refresh: claim, request, answer and storage."""
_CLAIM_SECONDS = REFRESH_TIMEOUT_SECONDS + 5.0
_RELEASE_TIMEOUT_SECONDS = 2.0
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.05, 0.5
_REFRESH_AHEAD_SECONDS = 60.0


class _UnsavedGrant(msgspec.Struct, frozen=True):
    """A refreshed grant that could not be stored.

    It also has the stored grant that it replaces, whose tokens are used up.
    """

    grant: Grant | None
    replaces: Grant | None


class GrantRefresher:
    """Refreshes the grant of one owner at one server.

    If the database refuses a refreshed grant, `unsaved` holds it, and the next refresh stores it.
    """

    def __init__(self, grants: GrantStore, server: ServerConfig, owner: str) -> None:
        self._grants = grants
        self._server = server
        self._grant_key = (server.name, owner, server.url)
        self.unsaved: _UnsavedGrant | None = None

    async def refresh(self, refused_token: str | None) -> Grant | None:
        """Return the grant with another token than the refused one.

        Without tokens if a user must sign in again.

        Raises:
            GatewayError: the database refuses.
            httpx2.TransportError: the authorization server does not work now, or the whole took too long.
        """
        try:
            async with Deadline.after(REFRESH_TIMEOUT_SECONDS).limit():
                return await self._refresh_claimed(refused_token)
        except TimeoutError:
            raise httpx2.ReadTimeout("the authorization server does not answer in time") from None

    async def _refresh_claimed(self, refused_token: str | None) -> Grant | None:
        stored, claim = await self._claim(refused_token)
        if claim is None:
            self.unsaved = None
            return stored
        unsaved = self.unsaved
        grant = unsaved.grant if unsaved is not None and unsaved.replaces == claim.grant else claim.grant
        try:
            if must_refresh(grant, refused_token):
                assert grant is not None
                grant = await _request_grant(grant, self._server)
        except BaseException:
            await self._release(claim)
            raise
        self.unsaved = None if grant == claim.grant else _UnsavedGrant(grant, claim.grant)
        stored = await self._grants.save_refreshed(*self._grant_key, claim, grant)
        self.unsaved = None
        return stored

    async def _claim(self, refused_token: str | None) -> tuple[Grant | None, RefreshClaim | None]:
        """Return the stored grant, and a claim if it must be refreshed.

        Waits while another worker refreshes it.
        """
        backoff = Backoff(_MIN_POLL_SECONDS, _MAX_POLL_SECONDS)
        while True:
            stored = await self._grants.get_grant(*self._grant_key)
            is_unsaved = self.unsaved is not None and self.unsaved.replaces == stored
            if stored is None or not (is_unsaved or must_refresh(stored, refused_token)):
                return stored, None
            claim = await self._grants.claim_refresh(*self._grant_key, seconds=_CLAIM_SECONDS)
            if claim is not None:
                return stored, claim
            await asyncio.sleep(backoff.next_delay())

    async def _release(self, claim: RefreshClaim) -> None:
        """Let other workers refresh; without the database, the claim expires."""
        with contextlib.suppress(GatewayError, TimeoutError):
            async with Deadline.after(_RELEASE_TIMEOUT_SECONDS).limit():
                await self._grants.save_refreshed(*self._grant_key, claim, claim.grant)


def get_expiry(token: OAuthToken) -> float | None:
    """Unix time at which a new token expires, if it does."""
    return None if token.expires_in is None else time.time() + token.expires_in


def must_refresh(grant: Grant | None, refused_token: str | None) -> bool:
    """Return whether a grant's token is refused or about to expire."""
    if grant is None or grant.access_token is None:
        return False
    is_expiring = grant.expires_at is not None and time.time() >= grant.expires_at - _REFRESH_AHEAD_SECONDS
    return is_expiring or grant.access_token == refused_token


async def _request_grant(grant: Grant, server: ServerConfig) -> Grant | None:
    """The grant with a new access token.

    Without tokens if a user must sign in again.

    None: the client's registration is no longer valid either.
    """
    without_tokens = msgspec.structs.replace(grant, access_token=None, refresh_token=None, expires_at=None)
    if grant.refresh_token is None or grant.token_endpoint is None:
        return without_tokens
    key = DpopKey(grant.dpop_key) if grant.dpop_key is not None else None
    proofs = DpopTransport(HttpsOnlyTransport(server), server.url, key)
    response = await _request_refresh(grant, grant.refresh_token, grant.token_endpoint, server, proofs)
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
        dpop_key=proofs.key.pem if proofs.is_bound else None,
    )


async def _request_refresh(
    grant: Grant, refresh_token: str, endpoint: str, server: ServerConfig, proofs: DpopTransport
) -> httpx2.Response:
    client = OAuthClientInformationFull.model_validate(grant.client)
    form_fields: JsonObject = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    if grant.resource is not None:
        form_fields["resource"] = grant.resource
    headers = add_client_authentication(client, form_fields)
    transport = LenientTransport(proofs, server.url)
    async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, transport=transport) as http:
        return await http.post(endpoint, data=form_fields, headers=headers)


def _parse_oauth_error(response: httpx2.Response) -> str:
    try:
        return str(response.json().get("error", ""))[:100]
    except (ValueError, AttributeError, RecursionError):
        return ""
