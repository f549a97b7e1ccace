"""Definitions of tools that a front end runs."""

import re
from typing import cast

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, ToolSpec
from gateway.wire.client_tools import build_client_tool

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_DESCRIPTION_LENGTH = 32_768
_MAX_SHOWN_LENGTH = 80


def read_tools(tools: list[JsonObject] | dict[str, JsonObject]) -> tuple[ToolSpec, ...]:
    """Read definitions of tools.

    They are in a list, in OpenAI's shape or flat, or by name. A tool's schema is its `parameters` or `inputSchema`.

    Raises:
        InvalidRequest: a definition has no valid name, description or schema.
    """
    if isinstance(tools, dict):
        return tuple(_read_tool({"name": name, **tool}, f"tools.{name[:64]}") for name, tool in tools.items())
    return tuple(_read_tool(_get_function(tool), f"tools.{number}") for number, tool in enumerate(tools))


def _get_function(tool: JsonObject) -> JsonObject:
    function = tool.get("function")
    return cast(JsonObject, function) if isinstance(function, dict) else tool


def _read_tool(tool: JsonObject, path: str) -> ToolSpec:
    name, description = tool.get("name"), tool.get("description")
    schema = tool.get("parameters", tool.get("inputSchema"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = str(name)[:_MAX_SHOWN_LENGTH]
        raise InvalidRequest(f"{path}.name: must be 1 to 64 letters, digits, _ and -, not {shown!r}.", param=path)
    if description is not None and (not isinstance(description, str) or len(description) > _MAX_DESCRIPTION_LENGTH):
        message = f"{path}.description: must be a text of at most {_MAX_DESCRIPTION_LENGTH:,} characters."
        raise InvalidRequest(message, param=path)
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest(f"{path}.parameters: must be a JSON schema.", param=path)
    return build_client_tool(name, description, cast(JsonObject | None, schema))
