"""Compares tools with their first seen definitions.

Descriptions are untrusted input for a model.
"""

import asyncio
from collections.abc import Callable

from mcp.types import Tool

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.messages import JsonObject
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.ports.tools import ToolDefinitionStore

log = get_logger(__name__)

_RETRY_SECONDS = 1.0
_COMPARED_FIELDS = ("name", "title", "description", "inputSchema", "annotations")


class DefinitionChecker:
    """Compares definitions in the background. `on_checked` is called after each comparison.

    Without a `store` nothing is compared. While the store is unavailable the comparison is retried.
    """

    def __init__(
        self,
        store: ToolDefinitionStore | None,
        find_connection: Callable[[str], ServerConnection | None],
        on_checked: Callable[[], None],
    ) -> None:
        self._store = store
        self._find_connection = find_connection
        self._on_checked = on_checked
        self._changed_tools: dict[str, set[str]] = {}
        self._unchecked_servers: set[str] = set()
        self._checking = SupervisedTask("mcp definitions", self._check_servers, restart=False)

    async def cancel_check(self) -> None:
        """Cancel the comparison under way."""
        await self._checking.stop()

    def request_check(self, server: str) -> None:
        """Compare the tools of a server soon."""
        if self._store is not None:
            self._unchecked_servers.add(server)
            self._checking.start()

    def list_changed(self) -> frozenset[tuple[str, str]]:
        """Server and name of each tool whose definition has changed."""
        return frozenset((server, tool) for server, tools in self._changed_tools.items() for tool in tools)

    def get_withheld_tools(self, connection: ServerConnection) -> set[str]:
        """Tools that must not be offered yet.

        A tool is withheld until it is compared, and if it has changed, until it is approved.
        """
        if self._store is None or connection.config.on_change != "hold":
            return set()
        return self._changed_tools.get(connection.config.name, set()) | connection.unchecked_tools

    async def _check_servers(self) -> None:
        while self._unchecked_servers:
            server = self._unchecked_servers.pop()
            connection = self._find_connection(server)
            if connection is None or not connection.tools:
                continue
            try:
                await self._check_server(connection)
            except GatewayError as error:
                log.warning("tool_definitions_not_checked", server=server, error=error.code)
                self._unchecked_servers.add(server)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _check_server(self, connection: ServerConnection) -> None:
        assert self._store is not None
        server = connection.config.name
        tools = connection.tools
        definitions = {tool.name: _dump_definition(tool) for tool in tools}
        changed_tools = await self._store.detect_changes(server, definitions)
        for tool in sorted(changed_tools - self._changed_tools.get(server, set())):
            log.warning("tool_definition_changed", server=server, tool=tool, held=connection.config.on_change)
        self._changed_tools[server] = changed_tools
        connection.mark_checked(tools)
        self._on_checked()


def _dump_definition(tool: Tool) -> JsonObject:
    """The fields of a definition that a model or an approval uses."""
    definition = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: definition.get(name) for name in _COMPARED_FIELDS}
