"""Server card and catalog of the MCP endpoint (SEP-2127)."""

from urllib.parse import urlsplit

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from gateway import __version__
from gateway.domain.messages import JsonObject

CARD_MEDIA_TYPE = "application/mcp-server-card+json"
_SCHEMA = "https://static.modelcontextprotocol.io/schemas/v2/server-card.schema.json"
_NAME, _TITLE = "agent-gateway", "MCP agent gateway"


def build_server_card(public_url: str) -> JsonObject:
    """Describe how hosts connect.

    The card names no tools or toolsets: these depend on the caller.
    """
    host = urlsplit(public_url).hostname or "localhost"
    versions = sorted((*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS), reverse=True)
    namespace = host if host.replace(".", "").isdigit() else ".".join(reversed(host.split(".")))
    return {
        "$schema": _SCHEMA,
        "name": f"{namespace.replace(':', '-')}/{_NAME}",
        "version": __version__,
        "title": _TITLE,
        "description": "Tools, resources and prompts of connected MCP servers, and an agent that uses them.",
        "remotes": [{"type": "streamable-http", "url": f"{public_url}/mcp", "supportedProtocolVersions": versions}],
    }


def build_catalog(public_url: str) -> JsonObject:
    """List the gateway's only server card."""
    host = urlsplit(public_url).hostname or "localhost"
    entry = {
        "identifier": f"urn:air:{host.replace(':', '-')}:{_NAME}",
        "displayName": _TITLE,
        "type": CARD_MEDIA_TYPE,
        "url": f"{public_url}/mcp/server-card",
    }
    return {"specVersion": "draft", "entries": [entry]}
