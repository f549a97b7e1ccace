"""Access tokens of the gateway itself, without a person."""

import asyncio
import math
import time

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthTokenError
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import ValidationError

from gateway.common.concurrency import Backoff
from gateway.common.logging import get_logger
from gateway.mcp_client.oauth.authorization_flow import PROBE, PROBE_HEADERS
from gateway.mcp_client.oauth.errors import InsecureUrl
from gateway.mcp_client.oauth.https_only import REQUEST_TIMEOUT_SECONDS, HttpsOnlyTransport
from gateway.mcp_client.oauth.lenient_answers import LenientTransport
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

_LEEWAY_SECONDS = 30.0
_DEFAULT_LIFETIME_SECONDS = 300.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 30.0
_PROBLEMS = (OAuthFlowError, OAuthTokenError, InsecureUrl, httpx2.HTTPError, ValidationError, ValueError)


class _TokenHolder:
    """Holds the token of one flow; the SDK's `TokenStorage`."""

    def __init__(self) -> None:
        self.token: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Ignore the client, which the server's entry names."""


class ClientTokenProvider(AccessTokenProvider):
    """The gateway's own token for one server, which all users share.

    It is fetched before it expires, and again when the server refuses it. After a failure, requests fail until the end
    of a pause. Only the authorization server that the entry names gets the credentials, whatever the server says.
    """

    def __init__(self, server: ServerConfig) -> None:
        super().__init__(None, server, "")
        self._server = server
        self._fetching = asyncio.Lock()
        self._token: str | None = None
        self._renew_at = self._expires_at = -math.inf
        self._pause_until = -math.inf
        self._pause = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)

    async def get_token(self) -> str | None:
        if time.monotonic() >= self._renew_at:
            async with self._fetching:
                if time.monotonic() >= self._renew_at:
                    try:
                        await self._fetch()
                    except httpx2.ConnectError:
                        if time.monotonic() >= self._expires_at:
                            raise
        return self._token

    async def replace_token(self, refused_token: str | None) -> str | None:
        async with self._fetching:
            if self._token == refused_token:
                await self._fetch()
        return None if self._token == refused_token else self._token

    async def _fetch(self) -> None:
        """Get a token, at the earliest after the pause of a failure.

        Raises:
            httpx2.ConnectError: there is no token now.
        """
        if time.monotonic() < self._pause_until:
            raise httpx2.ConnectError("the authorization server does not give the gateway a token now")
        try:
            token = await self._run_flow()
        except _PROBLEMS as error:
            self._pause_until = time.monotonic() + self._pause.next_delay()
            log.warning("client_token_not_fetched", server=self._server.name, error=type(error).__name__)
            raise httpx2.ConnectError("the authorization server does not give the gateway a token") from error
        self._pause.reset()
        lifetime = _DEFAULT_LIFETIME_SECONDS if token.expires_in is None else max(float(token.expires_in), 1.0)
        now = time.monotonic()
        self._token, self._expires_at = token.access_token, now + lifetime
        self._renew_at = now + max(lifetime - _LEEWAY_SECONDS, lifetime / 2)

    async def _run_flow(self) -> OAuthToken:
        holder = _TokenHolder()
        provider = _make_provider(self._server, holder)
        transport = LenientTransport(
            HttpsOnlyTransport(self._server, self.challenge or None, probing=True),
            self._server.url,
            lambda: provider.context.auth_server_url,
            strict_issuer=True,
        )
        async with (
            httpx2.AsyncClient(auth=provider, timeout=REQUEST_TIMEOUT_SECONDS, transport=transport) as http,
            http.stream("POST", self._server.url, json=PROBE, headers=PROBE_HEADERS),
        ):
            pass
        if holder.token is None:
            raise OAuthFlowError("the flow ended without a token")
        return holder.token


def _make_provider(server: ServerConfig, holder: _TokenHolder) -> OAuthClientProvider:
    client = server.oauth
    assert client is not None
    scope, issuer = client.scope, client.issuer
    if client.private_key is not None:
        parameters = SignedJWTParameters(
            issuer=client.client_id,
            subject=client.client_id,
            signing_key=client.private_key.get_secret_value(),
            signing_algorithm=client.signing_algorithm,
        )
        assertion = parameters.create_assertion_provider()
        return PrivateKeyJWTOAuthProvider(server.url, holder, client.client_id, assertion, scope, issuer)
    assert client.client_secret is not None
    secret, method = client.client_secret.get_secret_value(), client.token_endpoint_auth_method
    return ClientCredentialsOAuthProvider(
        server.url, holder, client.client_id, secret, method or "client_secret_basic", scope, issuer
    )
