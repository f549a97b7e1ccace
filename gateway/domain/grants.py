"""Grants of MCP servers that require a sign-in."""

import msgspec

from gateway.domain.messages import JsonObject


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """OAuth 2.1 tokens of one owner for a protected MCP server.

    The gateway itself owns shared ones. `client` is the registration at the authorization server (RFC 7591);
    `expires_at` is in seconds since the epoch. `dpop_key` is the private key (PEM) to which they are bound, if any.
    """

    client: JsonObject
    access_token: str | None = None
    refresh_token: str | None = None
    expires_at: float | None = None
    scope: str | None = None
    token_endpoint: str | None = None
    resource: str | None = None
    dpop_key: str | None = None


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """A started sign-in to an MCP server.

    `owner` "" is the gateway, for all of its users. `challenge` is the `WWW-Authenticate` header with which the server
    refused a request, if known.
    """

    server: str
    owner: str
    url: str
    by: str
    challenge: str | None = None
