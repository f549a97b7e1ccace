"""`/mcp/server-card` and `/.well-known/mcp`: how hosts find the MCP endpoint."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from gateway.api.deps import SettingsDep
from gateway.api.mcp.server_card import CARD_MEDIA_TYPE, build_catalog, build_server_card

router = APIRouter(tags=["MCP servers"])

_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET",
    "Access-Control-Allow-Headers": "Content-Type",
    "Cache-Control": "public, max-age=3600",
}


@router.get("/mcp/server-card", include_in_schema=False)
@router.get("/.well-known/mcp/server-card.json", include_in_schema=False)
async def get_server_card(settings: SettingsDep) -> JSONResponse:
    """Return the card of the MCP endpoint.

    Drafts had it at the second path.
    """
    return JSONResponse(build_server_card(settings.public_url), headers=_HEADERS, media_type=CARD_MEDIA_TYPE)


@router.get("/.well-known/mcp/catalog.json", include_in_schema=False)
async def get_mcp_catalog(settings: SettingsDep) -> JSONResponse:
    """Return the catalog of server cards."""
    return JSONResponse(build_catalog(settings.public_url), headers=_HEADERS)
