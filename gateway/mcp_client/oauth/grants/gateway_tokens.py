"""Access tokens of the gateway itself, without a person."""

from gateway.mcp_client.connection.errors import TokenUnavailable
from gateway.mcp_client.oauth.errors import TokenRefused
from gateway.mcp_client.oauth.grants.grant_types import create_own_grant
from gateway.mcp_client.oauth.grants.renewed_token import RenewedToken
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.ports.servers import ServerConfig


class GatewayTokenProvider(AccessTokenProvider):
    """The gateway's own token for one server, which all users share."""

    def __init__(self, server: ServerConfig) -> None:
        super().__init__(None, server, "")
        self._request = create_own_grant(server)
        self._token = RenewedToken(server.name, self._fetch)

    async def get_token(self) -> str | None:
        try:
            return await self._token.get()
        except TokenRefused as error:
            raise TokenUnavailable("gateway_refused") from error

    async def replace_token(self, refused_token: str | None) -> str | None:
        try:
            return await self._token.replace(refused_token)
        except TokenRefused as error:
            raise TokenUnavailable("gateway_refused") from error

    async def _fetch(self) -> IssuedToken:
        return await self._request(self.challenge or None)
