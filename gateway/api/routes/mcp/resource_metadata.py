"""`/.well-known/oauth-protected-resource`: where hosts of `/mcp` sign in (RFC 9728)."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from gateway.api.deps import SettingsDep
from gateway.api.security.permissions import MCP_SCOPES
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject
from gateway.domain.toolsets import is_mcp_path

router = APIRouter(tags=["MCP servers"])


@router.get("/.well-known/oauth-protected-resource", include_in_schema=False)
async def get_resource_metadata(settings: SettingsDep, response: Response) -> JsonObject:
    """Return the authorization servers whose tokens the gateway takes at `/mcp`.

    A token must name `resource` as its audience, so JWT_AUDIENCE is this address.

    Raises:
        NotFound: the gateway takes no tokens of an authorization server.
    """
    return await describe_resource(settings, response, "mcp")


@router.get("/.well-known/oauth-protected-resource/{resource_path:path}", include_in_schema=False)
async def describe_resource(
    settings: SettingsDep, response: Response, resource_path: Annotated[str, Path(max_length=1_000)]
) -> JsonObject:
    """Return the metadata of `/mcp` or of a toolset below it.

    The path may begin with that of GATEWAY_PUBLIC_URL, where RFC 9728 has it. Names of toolsets are not looked up,
    because they are for callers that have signed in.

    Raises:
        NotFound: the path is no address of MCP, or the gateway takes no tokens of an authorization server.
    """
    if not settings.authorization_servers:
        raise NotFound("This gateway takes no tokens of an authorization server: JWT_JWKS_URL is not set.")
    path = f"/{resource_path}".removesuffix("/")
    resource = next(filter(is_mcp_path, (path, path.removeprefix(settings.root_path))), None)
    if resource is None:
        raise NotFound("There is no resource at this path.")
    response.headers["Cache-Control"] = "public, max-age=300"
    scopes = {} if settings.jwt_scope_claim is None else {"scopes_supported": list(MCP_SCOPES)}
    return {
        **scopes,
        "resource": f"{settings.public_url}{resource}",
        "authorization_servers": settings.authorization_servers,
        "bearer_methods_supported": ["header"],
        "resource_name": "MCP agent gateway",
        "resource_documentation": f"{settings.public_url}/docs",
    }
