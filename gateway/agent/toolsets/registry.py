"""The toolsets, from the setting TOOLSETS and defined at run time."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from gateway.common.concurrency import SupervisedTask, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.bus import BusMessage
from gateway.domain.errors import Conflict, StorageUnavailable, ToolsetNotFound
from gateway.domain.messages import JsonObject
from gateway.domain.toolsets import Toolset, ToolsetDefinition
from gateway.ports.toolsets import ToolsetAdmin, ToolsetRepository

log = get_logger(__name__)

MAX_TOOLSETS = 500
_POLL_SECONDS = 30.0


class ToolsetRegistry(ToolsetAdmin):
    """Keeps the stored toolsets in memory.

    Polls the database; a notification of another worker triggers a read. `on_change` is called after each change. A
    toolset of the setting hides a stored one of its name.
    """

    def __init__(
        self,
        configured: Mapping[str, ToolsetDefinition],
        repository: ToolsetRepository,
        on_change: Callable[[], None],
    ) -> None:
        self._repository = repository
        self._on_change = on_change
        self._configured = {name: Toolset(name, definition, "setting") for name, definition in configured.items()}
        self._rows: dict[str, JsonObject] = {}
        self._toolsets: dict[str, Toolset] = dict(self._configured)
        self._changed = asyncio.Event()
        self.task = SupervisedTask("toolsets", self._watch)

    def on_toolsets_changed(self, _message: BusMessage) -> None:
        """Read the database, because a worker has changed it."""
        self._changed.set()

    def find_toolset(self, name: str) -> Toolset | None:
        return self._toolsets.get(name)

    def list_all(self) -> list[Toolset]:
        return [self._toolsets[name] for name in sorted(self._toolsets)]

    def get_toolset(self, name: str) -> Toolset:
        if (toolset := self._toolsets.get(name)) is None:
            raise ToolsetNotFound(f"There is no toolset {name[:100]!r}.", param="toolset")
        return toolset

    async def create_toolset(self, name: str, definition: ToolsetDefinition, *, by: str) -> None:
        if name in self._configured:
            raise Conflict(f"There is a toolset {name!r} already.", param="name")
        await self._repository.save_toolset(name, _dump(definition), is_new=True, limit=MAX_TOOLSETS, by=by)
        await self.read_stored()

    async def replace_toolset(self, name: str, definition: ToolsetDefinition, *, by: str) -> None:
        self._require_stored(name)
        await self._repository.save_toolset(name, _dump(definition), is_new=False, limit=MAX_TOOLSETS, by=by)
        await self.read_stored()

    async def remove_toolset(self, name: str, *, by: str) -> None:
        self._require_stored(name)
        await self._repository.delete_toolset(name, by=by)
        await self.read_stored()

    def _require_stored(self, name: str) -> None:
        if name in self._configured:
            raise Conflict(f"The setting TOOLSETS defines {name!r}. Change it there.", param="name")

    async def read_stored(self) -> None:
        """Read the stored toolsets.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        rows = await self._repository.list_toolsets()
        if rows == self._rows:
            return
        stored = {name: toolset for name, row in rows.items() if (toolset := _load(name, row)) is not None}
        self._rows, self._toolsets = rows, stored | self._configured
        self._on_change()

    async def _watch(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self.read_stored()
            except StorageUnavailable:
                log.warning("toolset_poll_failed")
            await wait_or_poll(self._changed, _POLL_SECONDS)


def _dump(definition: ToolsetDefinition) -> JsonObject:
    return definition.model_dump(mode="json", exclude_defaults=True)


def _load(name: str, row: dict[str, Any]) -> Toolset | None:
    """Return a stored toolset; None if a later release has written it."""
    try:
        return Toolset(name, ToolsetDefinition.model_validate(row), "api")
    except ValidationError:
        log.error("toolset_unreadable", toolset=name)
        return None
