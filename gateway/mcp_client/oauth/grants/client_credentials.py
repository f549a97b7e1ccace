"""The client credentials grant, for tokens of the gateway itself."""

from collections.abc import Awaitable, Callable

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthTokenError
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import ValidationError

from gateway.common.logging import get_logger
from gateway.mcp_client.oauth.authorization_flow import PROBE, PROBE_HEADERS
from gateway.mcp_client.oauth.errors import InsecureUrl
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken, make_assertion_signer, read_assertion
from gateway.mcp_client.oauth.https_only import REQUEST_TIMEOUT_SECONDS, HttpsOnlyTransport
from gateway.mcp_client.oauth.lenient_answers import LenientTransport
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

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


async def request_by_client_credentials(server: ServerConfig, challenge: str | None) -> IssuedToken:
    """Run the SDK's flow.

    Only the authorization server that the entry names gets the credentials.

    Raises:
        httpx2.ConnectError: there is no token now.
    """
    try:
        return await _run_flow(server, challenge)
    except _PROBLEMS as error:
        log.warning("client_token_not_fetched", server=server.name, error=type(error).__name__)
        raise httpx2.ConnectError("the authorization server does not give the gateway a token") from error


async def _run_flow(server: ServerConfig, challenge: str | None) -> IssuedToken:
    holder = _TokenHolder()
    provider = _make_provider(server, holder)
    transport = LenientTransport(
        HttpsOnlyTransport(server, challenge, probing=True),
        server.url,
        lambda: provider.context.auth_server_url,
        strict_issuer=True,
    )
    async with (
        httpx2.AsyncClient(auth=provider, timeout=REQUEST_TIMEOUT_SECONDS, transport=transport) as http,
        http.stream("POST", server.url, json=PROBE, headers=PROBE_HEADERS),
    ):
        pass
    if holder.token is None:
        raise OAuthFlowError("the flow ended without a token")
    return IssuedToken(holder.token.access_token, expires_in=holder.token.expires_in)


def _make_provider(server: ServerConfig, holder: _TokenHolder) -> OAuthClientProvider:
    # Imported here, as it imports PyJWT.
    from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider, PrivateKeyJWTOAuthProvider

    client = server.oauth
    assert client is not None
    scope, issuer = client.scope, client.issuer
    if client.client_secret is None:
        assertion = _read_from(client.assertion_file) if client.assertion_file else make_assertion_signer(client)
        return PrivateKeyJWTOAuthProvider(server.url, holder, client.client_id, assertion, scope, issuer)
    secret, method = client.client_secret.get_secret_value(), client.token_endpoint_auth_method
    return ClientCredentialsOAuthProvider(
        server.url, holder, client.client_id, secret, method or "client_secret_basic", scope, issuer
    )


def _read_from(path: str) -> Callable[[str], Awaitable[str]]:
    async def read(_audience: str) -> str:
        return read_assertion(path)

    return read
