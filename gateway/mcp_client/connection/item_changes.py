"""Announced changes of a server's lists of resources and prompts."""

import asyncio
from collections.abc import Callable

from mcp.client import IncomingMessage
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ServerEvent
from mcp.types import PromptListChangedNotification, ResourceListChangedNotification, ResourceUpdatedNotification

from gateway.mcp_client.connection.resource_updates import ResourceUpdates
from gateway.mcp_client.connection.tool_list import RefreshPace
from gateway.ports.tools import ChangeKind

_KINDS: dict[type[object], ChangeKind] = {
    PromptsListChanged: "prompts",
    PromptListChangedNotification: "prompts",
    ResourcesListChanged: "resources",
    ResourceListChangedNotification: "resources",
}


class ItemChanges:
    """Passes on announced changes at a bounded pace, like those of tools.

    The gateway keeps no lists of resources and prompts, so that only its hosts need to know.
    """

    def __init__(self, on_change: Callable[[frozenset[ChangeKind]], None]) -> None:
        self._on_change = on_change
        self.resource_updates = ResourceUpdates()
        self._kinds: set[ChangeKind] = set()
        self._event = asyncio.Event()
        self._pace = RefreshPace()

    def add(self, message: IncomingMessage | ServerEvent) -> None:
        """Note the change that a notification or event announces, if any."""
        if isinstance(message, ResourceUpdatedNotification):
            self.resource_updates.publish(message.params.uri)
        if (kind := _KINDS.get(type(message))) is not None:
            self._kinds.add(kind)
            self._event.set()

    async def forward_forever(self) -> None:
        """Pass on the noted changes; runs until cancelled."""
        while True:
            await self._event.wait()
            await self._pace.wait()
            self._event.clear()
            kinds = frozenset(self._kinds)
            self._kinds.clear()
            self._on_change(kinds)
