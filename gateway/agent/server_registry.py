"""Which MCP servers are connected: those of the file, and those added at run time, on every worker alike."""

import asyncio
from typing import Any

from pydantic import ValidationError

from gateway.common.logging import get_logger
from gateway.config import ConfigError, Settings
from gateway.domain.errors import Conflict, InvalidRequest, NotFound, StorageUnavailable
from gateway.domain.messages import BusMessage, JsonObject
from gateway.mcp_client.server_config import DEFAULT_FILE, ServerConfig, load_servers
from gateway.mcp_client.toolbox import McpToolbox
from gateway.store.bus import PostgresBus
from gateway.store.mcp_servers import ServerStore
from gateway.store.models import McpServerRow

log = get_logger(__name__)

_LOOK_SECONDS = 1.0
_ASK_SECONDS = 30.0


class Registry:
    """Keeps the toolbox in step with the file and the database. Looks at both now and then, or when told to."""

    def __init__(self, settings: Settings, toolbox: McpToolbox, kept: ServerStore, bus: PostgresBus) -> None:
        self._settings = settings
        self._toolbox = toolbox
        self._kept = kept
        self._bus = bus
        self._of_file = {server.name: server for server in load_servers(settings)}
        self._added: dict[str, McpServerRow] = {}
        self._file_state = self._look_at_file()
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what was added at run time, and watch. A database that is away is waited for in the background."""
        self._task = asyncio.create_task(self._watch(), name="servers")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_servers_changed(self, _message: BusMessage) -> None:
        """Read the database now: another worker has changed it."""
        self._look.set()

    def reload(self) -> None:
        """Look at the file and the database now."""
        self._file_state = None
        self._look.set()

    # --- at run time

    def source(self, name: str) -> str | None:
        """Where a server comes from: `file`, `api`, or None: there is none."""
        if name in self._of_file:
            return "file"
        return "api" if name in self._added else None

    def config(self, name: str) -> ServerConfig:
        """Raises:
        NotFound: there is no such server.
        """
        found = next((server for server in self._merged() if server.name == name), None)
        if found is None:
            raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")
        return found

    async def add(self, name: str, config: JsonObject, *, by: str) -> None:
        """Add a server for every worker.

        Raises:
            Conflict: there is one of that name.
            InvalidRequest: the configuration does not make sense.
        """
        if self.source(name) is not None:
            raise Conflict(f"There is an MCP server {name!r} already.", param="name")
        _checked(name, config)
        await self._kept.put(name, config, disabled=False, by=by)
        await self._changed()

    async def switch(self, name: str, *, disabled: bool, by: str) -> None:
        """Disable a server, or enable it again, wherever it comes from."""
        self.config(name)
        added = self._added.get(name)
        await self._kept.put(name, added.config if added else None, disabled=disabled, by=by)
        await self._changed()

    async def remove(self, name: str, *, by: str) -> None:
        """Remove a server that was added at run time.

        Raises:
            Conflict: the file configures it.
        """
        self.config(name)
        if name in self._of_file:
            raise Conflict(f"The file of MCP servers configures {name!r}: disable it, or take it out there.")
        await self._kept.remove(name, by=by)
        await self._changed()

    async def _changed(self) -> None:
        await self._read_rows()
        self._apply()
        self._bus.publish(BusMessage("servers", BusMessage.NO_TURN))

    # --- watching

    async def _watch(self) -> None:
        asked_at = -_ASK_SECONDS
        now = asyncio.get_running_loop().time
        while True:
            told = self._look.is_set()
            self._look.clear()
            changed = await self._read_file()
            if told or now() - asked_at >= _ASK_SECONDS:
                try:
                    changed = await self._read_rows() or changed
                    asked_at = now()
                except StorageUnavailable:
                    log.warning("servers_wait_for_database")
            if changed:
                self._apply()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                continue

    def _look_at_file(self) -> tuple[int, int] | None:
        """When the file was changed last; None: there is none that counts."""
        if self._settings.mcp_config is None and self._settings.mcp_server_url is not None:
            return None
        try:
            state = (self._settings.mcp_config or DEFAULT_FILE).stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size

    async def _read_file(self) -> bool:
        """Whether the file has changed. One that makes no sense any more changes nothing."""
        state = self._look_at_file()
        if state == self._file_state:
            return False
        self._file_state = state
        try:
            servers = await asyncio.to_thread(load_servers, self._settings)
        except ConfigError as error:
            log.error("servers_file_unusable", error=str(error))
            return False
        self._of_file = {server.name: server for server in servers}
        log.info("servers_file_read", servers=len(servers))
        return True

    async def _read_rows(self) -> bool:
        rows = {row.name: row for row in await self._kept.all()}
        before = {name: (row.config, row.disabled) for name, row in self._added.items()}
        self._added = rows
        return before != {name: (row.config, row.disabled) for name, row in rows.items()}

    def _apply(self) -> None:
        self._toolbox.reconcile(self._merged())

    def _merged(self) -> list[ServerConfig]:
        servers = dict(self._of_file)
        for name, row in self._added.items():
            if row.config is not None and name not in servers:
                servers[name] = ServerConfig.model_validate({**row.config, "name": name})
            if row.disabled and name in servers:
                servers[name] = servers[name].model_copy(update={"disabled": True})
        return list(servers.values())


def _checked(name: str, config: JsonObject) -> ServerConfig:
    try:
        return ServerConfig.model_validate({**config, "name": name})
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param=where) from None
