"""Access tokens for requests to protected servers, refreshed before they expire."""

import time

import httpx2
import msgspec
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import ValidationError

from gateway.common.logging import get_logger
from gateway.domain.errors import StorageUnavailable
from gateway.domain.messages import Grant, Principal
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

    One worker at a time refreshes a token before it expires.

    Without `grants` there are no tokens. `is_refused`: the server refused the latest request for lack of a valid token;
    `challenge` is the `WWW-Authenticate` header of that answer.
    """

    def __init__(self, grants: GrantStore | None, server: ServerConfig, owner: str) -> None:
        self._grants = grants if server.allows_sign_in else None
        self._server_url = server.url
        self._grant_key = (server.name, owner, server.url)
        self._grant: Grant | None = None
        self.is_refused = False
        self.challenge = ""

    @property
    def can_sign_in(self) -> bool:
        """Whether a user can sign in."""
        return self._grants is not None

    def discard_cached(self) -> None:
        """Read the stored grant again before the next request."""
        self._grant = None

    async def get_token(self, refused_token: str | None = None) -> str | None:
        """The token to send; None if a user must sign in.

        `refused_token` is a token that the server no longer accepts.

        Raises:
            StorageUnavailable: the grant cannot be read now.
        """
        if self._grants is None:
            return None
        if not _is_valid(self._grant, refused_token):
            self._grant = await self._grants.get_grant(*self._grant_key)
        if self._grant is None or _is_valid(self._grant, refused_token):
            return self._grant and self._grant.access_token
        async with self._grants.begin_transaction(*self._grant_key) as transaction:
            if transaction.grant is not None and not _is_valid(transaction.grant, refused_token):
                transaction.grant = await _refresh_grant(transaction.grant, self._server_url)
            self._grant = transaction.grant
        return self._grant and self._grant.access_token


def _is_valid(grant: Grant | None, refused_token: str | None) -> bool:
    if grant is None or grant.access_token is None or grant.access_token == refused_token:
        return False
    return grant.expires_at is None or time.time() < grant.expires_at - _REFRESH_AHEAD_SECONDS


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
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": client.client_id or ""}
    if grant.resource is not None:
        form["resource"] = grant.resource
    basic_auth = None
    if client.client_secret and client.token_endpoint_auth_method == "client_secret_basic":  # noqa: S105
        basic_auth = httpx2.BasicAuth(client.client_id or "", client.client_secret)
    elif client.client_secret:
        form["client_secret"] = client.client_secret
    transport = HttpsOnlyTransport(server_url)
    async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, transport=transport, auth=basic_auth) as http:
        return await http.post(endpoint, data=form)


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
        token = await self._get_token()
        response = await self._send_authorized(request, token)
        if response.status_code == 401 and token is not None:
            token = await self._get_token(refused_token=token)
            if token is not None:
                await response.aclose()
                response = await self._send_authorized(request, token)
        challenge = response.headers.get("WWW-Authenticate", "")
        lacks_scope = response.status_code == 403 and INSUFFICIENT_SCOPE in challenge
        if response.status_code == 401 or lacks_scope:
            self._tokens.is_refused, self._tokens.challenge = True, challenge[:_MAX_CHALLENGE_LENGTH]
        elif response.is_success:
            self._tokens.is_refused = False
        return response

    async def _get_token(self, refused_token: str | None = None) -> str | None:
        try:
            return await self._tokens.get_token(refused_token)
        except (StorageUnavailable, ValidationError, ValueError) as error:
            raise httpx2.ConnectError("there is no access token now") from error

    async def _send_authorized(self, request: httpx2.Request, token: str | None) -> httpx2.Response:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
