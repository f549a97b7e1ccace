"""`/.well-known/jwks.json`: the public keys of identity tokens."""

from fastapi import APIRouter, Response

from gateway.api.deps import IdentityJwksDep
from gateway.domain.messages import JsonObject

router = APIRouter(tags=["MCP servers"])


@router.get("/.well-known/jwks.json", include_in_schema=False)
async def get_identity_keys(jwks: IdentityJwksDep, response: Response) -> JsonObject:
    """Return the keys by which MCP servers verify identity tokens.

    The document is a JWKS (RFC 7517). Tokens with the issuer `agent-gateway` are signed with them.
    """
    response.headers["Cache-Control"] = "public, max-age=300"
    return jwks
