"""The agent card of A2A: addresses, skills and credentials."""

from collections.abc import Iterable

from gateway.domain.messages import JsonObject, ToolSpec

PROTOCOL_VERSION = "1.0"
LEGACY_PROTOCOL_VERSION = "0.3"
_MODES = ["text/plain", "application/json"]
_CHAT_SKILL = {
    "id": "chat",
    "name": "Chat with tools",
    "description": "Answers questions and does tasks with the tools of all connected MCP servers.",
    "tags": ["chat", "tools", "mcp"],
    "examples": ["What is 23*19?"],
}
_MAX_SKILLS = 500


def build_card(
    base_url: str, version: str, *, has_push: bool, needs_credential: bool, specs: Iterable[ToolSpec] = ()
) -> JsonObject:
    """Build the card.

    `specs` are the tools that the caller may use, each of which is a skill; the public card names none.
    """
    card: JsonObject = {
        "name": "MCP agent gateway",
        "description": "An agent with the tools of any number of MCP servers.",
        "version": version,
        "supportedInterfaces": [
            {"url": f"{base_url}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": PROTOCOL_VERSION},
            {"url": f"{base_url}/a2a/v1", "protocolBinding": "HTTP+JSON", "protocolVersion": PROTOCOL_VERSION},
            {"url": f"{base_url}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": LEGACY_PROTOCOL_VERSION},
        ],
        "capabilities": {"streaming": True, "pushNotifications": has_push, "extendedAgentCard": True},
        "defaultInputModes": [*_MODES, "image/*"],
        "defaultOutputModes": _MODES,
        "skills": [_CHAT_SKILL, *map(_build_skill, list(specs)[:_MAX_SKILLS])],
    }
    if needs_credential:
        bearer = {"description": "A key of the gateway, or a token", "scheme": "Bearer"}
        key = {"location": "header", "name": "X-API-Key"}
        card["securitySchemes"] = {
            "bearer": {"httpAuthSecurityScheme": bearer},
            "apiKey": {"apiKeySecurityScheme": key},
        }
        card["securityRequirements"] = [{"schemes": {"bearer": {"list": []}}}, {"schemes": {"apiKey": {"list": []}}}]
    return card


def _build_skill(spec: ToolSpec) -> JsonObject:
    return {
        "id": spec.name,
        "name": spec.title or spec.name,
        "description": spec.description or spec.name,
        "tags": [spec.server],
    }
