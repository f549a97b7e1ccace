"""The gateway's own tools that let a model look into a server's resources and prompts, where its entry says so."""

from typing import Any

import msgspec

from gateway.domain.errors import GatewayError
from gateway.domain.messages import JsonObject, Principal, ToolResult, ToolSpec, text_block
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.tool_names import exposed_name
from gateway.ports.tools import Toolbox

_NOTHING: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}
_URI: JsonObject = {
    "type": "object",
    "properties": {"uri": {"type": "string", "description": "The URI, listed or made from a template."}},
    "required": ["uri"],
    "additionalProperties": False,
}
_PROMPT: JsonObject = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_KINDS: dict[str, list[tuple[str, str, JsonObject]]] = {
    "resources": [
        ("list_resources", "List the resources of the server {0}, and the templates to make URIs from.", _NOTHING),
        ("read_resource", "Read a resource of the server {0}.", _URI),
    ],
    "prompts": [
        ("list_prompts", "List the prompts of the server {0}: texts prepared for a purpose.", _NOTHING),
        ("get_prompt", "Get a prompt of the server {0}, filled in.", _PROMPT),
    ],
}
_MOST_CHARS = 32_000


SIGN_IN = "sign_in"


def make_sign_in_tool(server: ServerConfig) -> ToolSpec:
    """Stands in for the tools of a server that nobody has signed in to yet."""
    prefix = server.name if server.prefix is None else server.prefix
    return ToolSpec(
        exposed_name(prefix, server.name, SIGN_IN), server.name, SIGN_IN,
        f"Ask the user to sign in to the server {server.name}. Its tools are on offer afterwards.", _NOTHING,
        read_only=True, destructive=False, idempotent=True, helper=True,
    )  # fmt: skip


def list_builtin_tools(server: ServerConfig) -> list[ToolSpec]:
    """The helpers that a server's entry asks for."""
    prefix = server.name if server.prefix is None else server.prefix
    return [
        ToolSpec(
            exposed_name(prefix, server.name, name), server.name, name, description.format(server.name), schema,
            read_only=True, destructive=False, idempotent=True, helper=True,
        )
        for kind in server.as_tools
        for name, description, schema in _KINDS[kind]
    ]  # fmt: skip


async def run_builtin_tool(toolbox: Toolbox, spec: ToolSpec, arguments: JsonObject, principal: Principal) -> ToolResult:
    """Run a helper."""
    try:
        told = await _told(toolbox, spec, arguments, principal)
    except GatewayError as error:
        return ToolResult("error", [text_block(error.message)])
    text = told if isinstance(told, str) else msgspec.json.encode(told).decode()
    if len(text) > _MOST_CHARS:
        text = f"{text[:_MOST_CHARS]}\n[cut: {len(text):,} characters, the first {_MOST_CHARS:,} are shown]"
    return ToolResult("ok", [text_block(text)])


async def _told(toolbox: Toolbox, spec: ToolSpec, arguments: JsonObject, principal: Principal) -> Any:
    def own(items: list[JsonObject]) -> list[JsonObject]:
        return [
            {name: value for name, value in item.items() if name not in ("server", "prompt", "_meta")}
            for item in items
            if item["server"] == spec.server
        ]

    match spec.tool:
        case "list_resources":
            resources = own(await toolbox.listed("resources", principal))
            return {"resources": resources, "templates": own(await toolbox.listed("resource_templates", principal))}
        case "read_resource":
            read = await toolbox.read_resource(str(arguments.get("uri")), principal, spec.server)
            return "\n".join(str(part.get("text", f"[{part.get('mimeType')}]")) for part in read["contents"])
        case "list_prompts":
            return {"prompts": own(await toolbox.listed("prompts", principal))}
        case _:
            given: dict[str, str] = arguments.get("arguments") or {}
            return await toolbox.get_prompt(str(arguments.get("name")), given, principal)
