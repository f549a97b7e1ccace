"""`/.well-known/oauth-protected-resource`: where hosts of `/mcp` sign in (RFC 9728)."""

from fastapi import APIRouter, Response

from gateway.api.deps import SettingsDep
from gateway.api.security.permissions import MCP_SCOPES
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject

router = APIRouter(tags=["MCP servers"])


@router.get("/.well-known/oauth-protected-resource", include_in_schema=False)
@router.get("/.well-known/oauth-protected-resource/mcp", include_in_schema=False)
async def get_resource_metadata(settings: SettingsDep, response: Response) -> JsonObject:
    """Return the authorization server whose tokens the gateway takes at `/mcp`.

    A token must name `resource` as its audience, so JWT_AUDIENCE is this address.

    Raises:
        NotFound: the gateway takes no tokens of an authorization server.
    """
    if settings.authorization_server is None:
        raise NotFound("This gateway takes no tokens of an authorization server: JWT_JWKS_URL is not set.")
    response.headers["Cache-Control"] = "public, max-age=300"
    scopes = {} if settings.jwt_scope_claim is None else {"scopes_supported": list(MCP_SCOPES)}
    return {
        **scopes,
        "resource": f"{settings.public_url}/mcp",
        "authorization_servers": [settings.authorization_server],
        "bearer_methods_supported": ["header"],
        "resource_name": "MCP agent gateway",
        "resource_documentation": f"{settings.public_url}/docs",
    }
