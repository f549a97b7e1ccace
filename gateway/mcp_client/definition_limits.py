"""Bounds of what an MCP server may list: tools, resources and prompts."""

from collections.abc import Mapping
from typing import Any, cast

from mcp.types import Tool

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.common.schema_rules import SchemaTooLarge, measure_value

log = get_logger(__name__)

MAX_ITEM_NODES, MAX_ITEM_CHARS = 25_000, 512 * 1024
MAX_LIST_NODES, MAX_LIST_CHARS = 200_000, 8 * 1024 * 1024
MAX_TOOL_NAME_LENGTH = 256
_MAX_LOGGED_LENGTH = 100


class ListLimit:
    """Accepts the items of one list until a total size.

    The total is that of all pages. An item that is too large or malformed is left out.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._remaining_nodes = MAX_LIST_NODES
        self._remaining_chars = MAX_LIST_CHARS

    def accepts_tool(self, tool: Tool) -> bool:
        """Return whether a tool may be offered."""
        name = tool.name
        if not 0 < len(name) <= MAX_TOOL_NAME_LENGTH or any(ord(char) < 32 for char in name):
            log.warning("mcp_definition_refused", server=self._server, item=_shorten(name), reason="its name")
            return False
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
            log.warning("mcp_definition_refused", server=self._server, item=_shorten(name), reason=str(error))
            return False
        self._remaining_nodes -= size.nodes
        self._remaining_chars -= size.chars
        return True


def _shorten(name: str) -> str:
    return clean_text(name, _MAX_LOGGED_LENGTH)
