"""Bounds of what an MCP server may list: tools, resources and prompts."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import mcp.client.session
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp.types import Tool

from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.ports.tools import DefinitionKind
from gateway_runtime.json_schema.rules import SchemaTooLarge, measure_value

MAX_ITEM_NODES, MAX_ITEM_CHARS = 25_000, 512 * 1024
MAX_LIST_NODES, MAX_LIST_CHARS = 100_000, 8 * 1024 * 1024
MAX_TOOL_NAME_LENGTH = 256


class ListLimit:
    """Accepts the items of one list until a total size.

    The total is that of all pages. An item that is too large or malformed is left out.
    """

    def __init__(self, kind: DefinitionKind, problems: DefinitionProblems) -> None:
        self._kind: DefinitionKind = kind
        self._problems = problems
        self._remaining_nodes = MAX_LIST_NODES
        self._remaining_chars = MAX_LIST_CHARS

    def accepts_tool(self, tool: Tool) -> bool:
        """Return whether a tool may be offered."""
        name = tool.name
        if not 0 < len(name) <= MAX_TOOL_NAME_LENGTH or any(ord(char) < 32 for char in name):
            return self._refuse(name, "its name has control characters, or not 1 to 256 characters")
        icons = [icon.src for icon in tool.icons or ()]
        title = tool.annotations.title if tool.annotations else None
        parts = [
            name, tool.title, tool.description, title, icons, tool.input_schema, tool.output_schema, tool.meta
        ]  # fmt: skip
        return self.accepts(name, [*parts, cast("Mapping[str, Any] | None", tool.model_extra)])

    def accepts(self, name: str, item: object) -> bool:
        """Return whether an item, in JSON's types, is small enough."""
        nodes, chars = min(MAX_ITEM_NODES, self._remaining_nodes), min(MAX_ITEM_CHARS, self._remaining_chars)
        try:
            size = measure_value(item, max_nodes=nodes, max_chars=chars)
        except SchemaTooLarge as error:
            return self._refuse(name, str(error))
        self._remaining_nodes -= size.nodes
        self._remaining_chars -= size.chars
        return True

    def _refuse(self, name: str, reason: str) -> Literal[False]:
        self._problems.add(self._kind, name, reason, left_out=True)
        return False


def limit_header_search() -> None:
    """Make the SDK search only schemas of a bounded size for `x-mcp-header`.

    It searches each listed schema before anything can leave a tool out, in the event loop.
    """
    mcp.client.session.find_invalid_x_mcp_header = (  # pyright: ignore[reportPrivateImportUsage]
        find_invalid_header
    )


def find_invalid_header(input_schema: object) -> str | None:
    """Return why a tool's headers cannot be sent, or None."""
    try:
        measure_value(input_schema, max_nodes=MAX_ITEM_NODES, max_chars=MAX_ITEM_CHARS)
    except SchemaTooLarge as error:
        return str(error)
    return find_invalid_x_mcp_header(input_schema)
