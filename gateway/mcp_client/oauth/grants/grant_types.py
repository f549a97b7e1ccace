"""The grants of an entry's `oauth`: how its tokens are requested."""

from collections.abc import Awaitable, Callable
from functools import partial

import httpx2
from mcp.shared.auth import JWT_BEARER_GRANT_TYPE
from mcp.shared.auth_utils import resource_url_from_server_url
from pydantic import SecretStr

from gateway.domain.messages import JsonObject
from gateway.mcp_client.oauth.grants.client_credentials import request_by_client_credentials
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken, TokenEndpoint, read_assertion
from gateway.ports.servers import OAuthClient, ServerConfig

_EXCHANGE_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
_TYPE_PREFIX = "urn:ietf:params:oauth:token-type:"
_ACCESS_TOKEN, _ID_JAG = f"{_TYPE_PREFIX}access_token", f"{_TYPE_PREFIX}id-jag"
_USABLE_TYPES = (None, _ACCESS_TOKEN, f"{_TYPE_PREFIX}jwt")

RequestOwnToken = Callable[[str | None], Awaitable[IssuedToken]]
"""Requests a token of the gateway itself.

Its argument is the challenge of a refused request. It raises TokenRefused or httpx2.ConnectError, as
`RequestCallerToken` does.
"""
RequestCallerToken = Callable[[SecretStr], Awaitable[IssuedToken]]
"""Requests a token of the user whose own token it gets."""


def create_own_grant(server: ServerConfig) -> RequestOwnToken:
    """Return the grant of an entry that `gets_own_tokens`."""
    client = _get_client(server)
    if client.grant_type == "client_credentials":
        return partial(request_by_client_credentials, server)
    endpoint = TokenEndpoint(server, client)

    async def request(_challenge: str | None) -> IssuedToken:
        try:
            assertion = read_assertion(client.assertion_file or "")
        except ValueError as error:
            raise httpx2.ConnectError(str(error)) from None
        return await _request_for_assertion(endpoint, server, client, assertion)

    return request


def create_caller_grant(server: ServerConfig) -> RequestCallerToken:
    """Return the grant of an entry that `exchanges_tokens`."""
    client = _get_client(server)
    endpoint = TokenEndpoint(server, client)
    if client.identity_provider is None:
        return partial(_exchange_token, endpoint, server, client)
    return partial(_exchange_for_assertion, TokenEndpoint(server, client.identity_provider), endpoint, server, client)


async def _exchange_token(
    endpoint: TokenEndpoint, server: ServerConfig, client: OAuthClient, subject: SecretStr
) -> IssuedToken:
    """Exchange a caller's token for one for the server (RFC 8693)."""
    target = (
        {"audience": client.audience} if client.audience else {"resource": resource_url_from_server_url(server.url)}
    )
    fields = {
        "grant_type": _EXCHANGE_GRANT_TYPE,
        "subject_token": subject.get_secret_value(),
        "subject_token_type": _TYPE_PREFIX + (client.subject_token_type or "access_token"),
        "requested_token_type": _ACCESS_TOKEN,
        **target,
        **_make_scope(client),
    }
    token = _require_bearer(await endpoint.request_token(fields))
    if token.issued_token_type not in _USABLE_TYPES or token.access_token == subject.get_secret_value():
        raise httpx2.ConnectError("the authorization server does not exchange the token")
    return token


async def _exchange_for_assertion(
    provider: TokenEndpoint, endpoint: TokenEndpoint, server: ServerConfig, client: OAuthClient, subject: SecretStr
) -> IssuedToken:
    """Get an identity assertion for a caller's token, then a token.

    This is MCP's enterprise-managed authorization (SEP-990).
    """
    fields = {
        "grant_type": _EXCHANGE_GRANT_TYPE,
        "subject_token": subject.get_secret_value(),
        "subject_token_type": _TYPE_PREFIX + (client.subject_token_type or "id_token"),
        "requested_token_type": _ID_JAG,
        "audience": client.audience or endpoint.issuer,
        "resource": resource_url_from_server_url(server.url),
        **_make_scope(client),
    }
    assertion = await provider.request_token(fields)
    if assertion.issued_token_type != _ID_JAG or assertion.access_token == subject.get_secret_value():
        raise httpx2.ConnectError("the identity provider gives no identity assertion")
    return await _request_for_assertion(endpoint, server, client, assertion.access_token)


async def _request_for_assertion(
    endpoint: TokenEndpoint, server: ServerConfig, client: OAuthClient, assertion: str
) -> IssuedToken:
    """Request a token for an assertion (RFC 7523)."""
    fields = {
        "grant_type": JWT_BEARER_GRANT_TYPE,
        "assertion": assertion,
        "resource": resource_url_from_server_url(server.url),
        **_make_scope(client),
    }
    return _require_bearer(await endpoint.request_token(fields))


def _require_bearer(token: IssuedToken) -> IssuedToken:
    if token.token_type.lower() != "bearer":
        raise httpx2.ConnectError("the authorization server gives no bearer token")
    return token


def _make_scope(client: OAuthClient) -> JsonObject:
    return {"scope": client.scope} if client.scope else {}


def _get_client(server: ServerConfig) -> OAuthClient:
    assert server.oauth is not None
    return server.oauth
