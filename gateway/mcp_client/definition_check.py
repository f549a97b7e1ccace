"""Compares tools and instructions with their first seen definitions.

Descriptions and instructions are untrusted input for a model.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

from mcp.types import Tool

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.domain.errors import GatewayError, StorageRefused
from gateway.domain.messages import JsonObject
from gateway.mcp_client.connection_pool import ServerOffer
from gateway.ports.tools import INSTRUCTIONS, ToolDefinitionStore

log = get_logger(__name__)

_RETRY_SECONDS = 1.0
_MAX_LOGGED_LENGTH = 100
_COMPARED_FIELDS = ("name", "title", "description", "inputSchema", "annotations", "outputSchema")


class DefinitionChecker:
    """Compares definitions in the background.

    `on_checked` is called after each comparison, for each user whose connection caused it; None: all users.

    Without a `store` nothing is compared. While the store is unavailable the comparison is retried. `find_offer`
    returns what a server offers now; None if it offers nothing.
    """

    def __init__(
        self,
        store: ToolDefinitionStore | None,
        find_offer: Callable[[str], ServerOffer | None],
        on_checked: Callable[[str | None], None],
    ) -> None:
        self._store = store
        self._find_offer = find_offer
        self._on_checked = on_checked
        self._changed_tools: dict[str, set[str]] = {}
        self._checked_offers: dict[str, ServerOffer] = {}
        self._unchecked_servers: dict[str, set[str | None]] = {}
        self._checking = SupervisedTask("mcp definitions", self._check_servers, restart=False)

    async def cancel_check(self) -> None:
        """Cancel the comparison under way."""
        await self._checking.stop()

    def request_check(self, server: str, user: str | None = None) -> None:
        """Compare the tools and instructions of a server soon.

        `user`: the one whose own connection has changed.
        """
        if self._store is not None:
            self._unchecked_servers.setdefault(server, set()).add(user)
            self._checking.start()

    def recheck_withheld(self) -> None:
        """Compare again where something is withheld.

        An admin may have approved it at another worker.
        """
        for server in [server for server, names in self._changed_tools.items() if names]:
            self.request_check(server)

    def list_changed(self) -> frozenset[tuple[str, str]]:
        """Server and name of each changed tool.

        New tools that are withheld are included.
        """
        return frozenset(
            (server, tool) for server, tools in self._changed_tools.items() for tool in tools if tool != INSTRUCTIONS
        )

    def get_withheld_tools(self, offer: ServerOffer) -> set[str]:
        """Tools that must not be offered yet.

        A tool is withheld until it is compared, and if it is new or has changed, until it is approved.
        """
        if self._store is None or offer.config.on_change != "hold":
            return set()
        checked = self._checked_offers.get(offer.config.name)
        checked_tools = {tool.name: tool for tool in checked.tools} if checked is not None else {}
        unchecked = {tool.name for tool in offer.tools if checked_tools.get(tool.name) != tool}
        return self._changed_tools.get(offer.config.name, set()) | unchecked

    def withholds_instructions(self, offer: ServerOffer) -> bool:
        """Return whether a model must not read the server's instructions yet."""
        if self._store is None or offer.config.on_change != "hold":
            return False
        checked = self._checked_offers.get(offer.config.name)
        is_checked = checked is not None and checked.instructions == offer.instructions
        return not is_checked or INSTRUCTIONS in self._changed_tools.get(offer.config.name, set())

    async def _check_servers(self) -> None:
        while self._unchecked_servers:
            server, users = self._unchecked_servers.popitem()
            offer = self._find_offer(server)
            if offer is None:
                continue
            try:
                await self._check_offer(server, offer)
                for user in {None} if None in users else users:
                    self._on_checked(user)
            except StorageRefused as error:  # a retry would be refused, too
                log.error("tool_definitions_not_checked", server=server, error=error.code)
            except GatewayError as error:
                log.warning("tool_definitions_not_checked", server=server, error=error.code)
                self._unchecked_servers.setdefault(server, set()).update(users)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _check_offer(self, server: str, offer: ServerOffer) -> None:
        assert self._store is not None
        holds = offer.config.on_change == "hold"
        definitions = {tool.name: _dump_definition(tool) for tool in offer.tools}
        if offer.instructions is not None:
            definitions[INSTRUCTIONS] = {"instructions": _make_storable(offer.instructions)}
        changed_tools = await self._store.detect_changes(server, definitions, hold_new=holds)
        for tool in sorted(changed_tools - self._changed_tools.get(server, set())):
            name = clean_text(tool, _MAX_LOGGED_LENGTH) or "(instructions)"
            log.warning("tool_definition_changed", server=server, tool=name, held=holds)
        self._changed_tools[server] = changed_tools
        self._checked_offers[server] = offer


def _dump_definition(tool: Tool) -> JsonObject:
    """The compared fields of a definition."""
    definition = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: _make_storable(definition.get(name)) for name in _COMPARED_FIELDS}


def _make_storable(value: Any) -> Any:
    """A JSON value without the content that Postgres refuses.

    It refuses NUL, and numbers that are not finite.
    """
    if isinstance(value, str):
        return value.replace("\x00", "\\u0000")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_make_storable(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_make_storable(name): _make_storable(item) for name, item in cast("dict[str, Any]", value).items()}
    return value
