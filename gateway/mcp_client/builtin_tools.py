"""The gateway's own tools for resources, prompts and sign-in."""

from collections.abc import Container

import msgspec

from gateway.domain.errors import GatewayError
from gateway.domain.messages import JsonObject, Principal, ToolResult, ToolSpec, text_block
from gateway.mcp_client.results.dump import truncate_text
from gateway.mcp_client.tool_names import ExposedNames
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import Toolbox, ToolCallRequest

_NO_ARGUMENTS: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}
_URI_ARGUMENT: JsonObject = {
    "type": "object",
    "properties": {"uri": {"type": "string", "description": "The URI, listed or made from a template."}},
    "required": ["uri"],
    "additionalProperties": False,
}
_PROMPT_ARGUMENTS: JsonObject = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_TOOLS_BY_KIND: dict[str, list[tuple[str, str, JsonObject]]] = {
    "resources": [
        (
            "list_resources",
            "List the resources of the server {0}, and the templates to make URIs from.",
            _NO_ARGUMENTS,
        ),
        ("read_resource", "Read a resource of the server {0}.", _URI_ARGUMENT),
    ],
    "prompts": [
        ("list_prompts", "List the prompts of the server {0}: texts prepared for a purpose.", _NO_ARGUMENTS),
        ("get_prompt", "Get a prompt of the server {0}, filled in.", _PROMPT_ARGUMENTS),
    ],
}
_OMITTED_FIELDS = ("server", "prompt", "_meta")

SIGN_IN = "sign_in"


def make_sign_in_tool(server: ServerConfig, names: ExposedNames) -> ToolSpec:
    """The tool that replaces a server's tools until a user signs in."""
    description = f"Ask the user to sign in to the server {server.name}. Its tools are available afterwards."
    exposed_name = names.get_name(server, SIGN_IN)
    return _make_builtin_tool(server, exposed_name, SIGN_IN, description, _NO_ARGUMENTS)


def list_builtin_tools(server: ServerConfig, names: ExposedNames, taken: Container[str]) -> list[ToolSpec]:
    """The built-in tools that a server's entry asks for in `as_tools`.

    Names in `taken` are those of the server's own tools.
    """
    return [
        _make_builtin_tool(
            server,
            names.get_name(server, name, distinct=names.get_name(server, name) in taken),
            name,
            description.format(server.name),
            schema,
        )
        for kind in server.as_tools
        for name, description, schema in _TOOLS_BY_KIND[kind]
    ]


def _make_builtin_tool(
    server: ServerConfig, exposed_name: str, name: str, description: str, schema: JsonObject
) -> ToolSpec:
    return ToolSpec(
        exposed_name,
        server.name,
        name,
        description,
        schema,
        read_only=True,
        destructive=False,
        idempotent=True,
        helper=True,
    )


async def run_builtin_tool(toolbox: Toolbox, request: ToolCallRequest, max_chars: int) -> ToolResult:
    """Run a built-in tool over a toolbox. Its errors become results."""
    try:
        text = await _get_text(toolbox, request.spec, request.arguments, request.principal)
    except GatewayError as error:
        return ToolResult("error", [text_block(error.message)])
    return ToolResult("ok", [text_block(text if request.is_whole else truncate_text(text, max_chars))])


async def _get_text(toolbox: Toolbox, spec: ToolSpec, arguments: JsonObject, principal: Principal) -> str:
    match spec.tool:
        case "list_resources":
            resources = _select_items(spec, await toolbox.list_server_items("resources", principal))
            templates = _select_items(spec, await toolbox.list_server_items("resource_templates", principal))
            return _encode_json({"resources": resources, "templates": templates})
        case "read_resource":
            resource = await toolbox.read_resource(str(arguments.get("uri")), principal, spec.server)
            return "\n".join(str(part.get("text", f"[{part.get('mimeType')}]")) for part in resource["contents"])
        case "list_prompts":
            return _encode_json({"prompts": _select_items(spec, await toolbox.list_server_items("prompts", principal))})
        case _:
            prompt_arguments: dict[str, str] = arguments.get("arguments") or {}
            return _encode_json(await toolbox.get_prompt(str(arguments.get("name")), prompt_arguments, principal))


def _select_items(spec: ToolSpec, items: list[JsonObject]) -> list[JsonObject]:
    """Items of the tool's own server, without fields that models ignore."""
    return [
        {name: value for name, value in item.items() if name not in _OMITTED_FIELDS}
        for item in items
        if item["server"] == spec.server
    ]


def _encode_json(value: JsonObject) -> str:
    return msgspec.json.encode(value).decode()
