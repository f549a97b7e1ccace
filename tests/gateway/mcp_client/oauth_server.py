"""An MCP server that requires OAuth; its authorization server consents to everything."""

import secrets
import time
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    TokenError,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.types import ToolAnnotations
from pydantic import AnyHttpUrl
from starlette.types import ASGIApp


class OAuthMcpServer:
    """The server at `http://127.0.0.1:{port}/mcp` and the state of its authorization."""

    def __init__(self, port: int, *, lifetime: int = 3600, deny: bool = False) -> None:
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.lifetime = lifetime
        self.deny = deny
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}
        self.refreshed = 0
        issuer = AnyHttpUrl(f"http://127.0.0.1:{port}")
        self.mcp: MCPServer[Any] = MCPServer(
            "vault",
            log_level="ERROR",
            auth_server_provider=self,
            auth=AuthSettings(
                issuer_url=issuer,
                resource_server_url=AnyHttpUrl(self.url),
                required_scopes=["read"],
                client_registration_options=ClientRegistrationOptions(
                    enabled=True, valid_scopes=["read"], default_scopes=["read"]
                ),
                validate_token_resource=True,
            ),
        )

        @self.mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
        def whose_vault() -> str:
            """Return the client id of the token."""
            token = get_access_token()
            assert token is not None
            return f"the vault of {token.client_id}"

    def create_app(self) -> ASGIApp:
        return self.mcp.streamable_http_app()

    def revoke_access(self) -> None:
        """Revoke all access tokens; refresh tokens stay valid."""
        self.access.clear()

    # --- the SDK's OAuthAuthorizationServerProvider

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        if self.deny:
            return construct_redirect_uri(str(params.redirect_uri), error="access_denied", state=params.state)
        code = AuthorizationCode(
            code=secrets.token_hex(20),
            scopes=params.scopes or ["read"],
            expires_at=time.time() + 60,
            client_id=client.client_id or "",
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(self, client: OAuthClientInformationFull, code: str) -> AuthorizationCode | None:
        return self.codes.get(code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[code.code]
        return self._issue_tokens(code.client_id, code.scopes, code.resource)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if self.refresh.pop(refresh_token.token, None) is None:
            raise TokenError("invalid_grant", "used before")
        self.refreshed += 1
        return self._issue_tokens(refresh_token.client_id, scopes, self.url)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access.pop(token.token, None)

    async def exchange_identity_assertion(self, *_: Any, **__: Any) -> OAuthToken:
        raise TokenError("unsupported_grant_type")

    def _issue_tokens(self, client_id: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access = AccessToken(
            token=f"access-{secrets.token_hex(16)}",
            client_id=client_id,
            scopes=scopes,
            resource=resource,
            expires_at=int(time.time() + max(self.lifetime, 30)),
        )
        refresh = RefreshToken(token=f"refresh-{secrets.token_hex(16)}", client_id=client_id, scopes=scopes)
        self.access[access.token] = access
        self.refresh[refresh.token] = refresh
        return OAuthToken(
            access_token=access.token,
            token_type="Bearer",
            expires_in=self.lifetime,
            scope=" ".join(scopes),
            refresh_token=refresh.token,
        )
