"""The configured MCP servers, from the file and added at run time.

They are the same on every worker.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Literal

from pydantic import ValidationError

from gateway.common.concurrency import SupervisedTask, wait_or_poll
from gateway.common.logging import get_logger
from gateway.common.validation_errors import describe_problem
from gateway.config import ConfigError
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import Conflict, InvalidRequest, NotFound, StorageUnavailable
from gateway.domain.messages import JsonObject
from gateway.ports.servers import (
    ServerAdmin,
    ServerConfig,
    ServerConfigSource,
    ServerPool,
    ServerRecord,
    ServerRepository,
)
from gateway.ports.store import Bus

log = get_logger(__name__)

_FILE_POLL_SECONDS = 1.0
_DATABASE_POLL_SECONDS = 30.0


class ServerRegistry(ServerAdmin):
    """Keeps the connections in step with file and database.

    Polls both; a notification triggers a read.
    """

    def __init__(self, source: ServerConfigSource, pool: ServerPool, repository: ServerRepository, bus: Bus) -> None:
        self._source = source
        self._pool = pool
        self._repository = repository
        self._bus = bus
        self._file_configs = {server.name: server for server in source.load()}
        self._records: dict[str, ServerRecord] = {}
        self._file_version: Hashable | None = source.get_version()
        self._changed = asyncio.Event()
        self._rows_read_at: float | None = None
        self.task = SupervisedTask("mcp server registry", self._watch)

    def on_servers_changed(self, _message: BusMessage) -> None:
        """Read the database, because another worker has changed it."""
        self._changed.set()

    def reload(self) -> None:
        """Read the file and the database now."""
        self._file_version = None
        self._changed.set()

    # --- at run time

    def get_source(self, name: str) -> Literal["file", "api"] | None:
        if name in self._file_configs:
            return "file"
        return "api" if name in self._records else None

    def get_config(self, name: str) -> ServerConfig:
        """Raises:
        NotFound: there is no such server.
        """
        config = next((server for server in self._merge_configs() if server.name == name), None)
        if config is None:
            raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")
        return config

    async def add_server(self, name: str, config: JsonObject, *, by: str) -> None:
        """Add a server for every worker.

        Raises:
            Conflict: a server of that name exists.
            InvalidRequest: the configuration is not valid.
        """
        if self.get_source(name) is not None:
            raise Conflict(f"There is an MCP server {name!r} already.", param="name")
        _validate(name, config)
        await self._repository.save_server(name, config, disabled=False, by=by)
        await self._publish_change()

    async def change_server(
        self, name: str, change: Callable[[JsonObject], JsonObject], *, disabled: bool | None = None, by: str
    ) -> None:
        """See `ServerAdmin.change_server`."""
        self.get_config(name)
        if name in self._file_configs:
            raise Conflict(f"The file of MCP servers configures {name!r}. Change it there.")

        def change_validated(config: JsonObject) -> JsonObject:
            changed = change(config)
            _validate(name, changed)
            return changed

        await self._repository.change_server(name, change_validated, disabled=disabled, by=by)
        await self._publish_change()

    async def set_disabled(self, name: str, *, disabled: bool, by: str) -> None:
        """Disable or enable a server of the file or of the database."""
        self.get_config(name)
        if name in self._file_configs:
            await self._repository.save_server(name, None, disabled=disabled, by=by)
        else:
            await self._repository.change_server(name, lambda config: config, disabled=disabled, by=by)
        await self._publish_change()

    async def remove_server(self, name: str, *, by: str) -> None:
        """Remove a server that was added at run time.

        Raises:
            Conflict: the file configures it.
        """
        self.get_config(name)
        if name in self._file_configs:
            raise Conflict(f"The file of MCP servers configures {name!r}. Disable it, or remove it from the file.")
        await self._repository.delete_server(name, by=by)
        await self._publish_change()

    async def _publish_change(self) -> None:
        await self._read_rows()
        self._reconcile()
        self.notify_workers()

    def notify_workers(self) -> None:
        self._bus.publish(BusMessage(BusKind.SERVERS_CHANGED, BusMessage.NO_TURN))

    # --- watching

    async def _watch(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            is_notified = self._changed.is_set()
            self._changed.clear()
            changed = await self._read_file()
            if is_notified or self._rows_read_at is None or now() - self._rows_read_at >= _DATABASE_POLL_SECONDS:
                try:
                    changed = await self._read_rows() or changed
                    self._rows_read_at = now()
                except StorageUnavailable:
                    log.warning("server_poll_failed")
            if changed or is_notified:
                self._reconcile()
            await wait_or_poll(self._changed, _FILE_POLL_SECONDS)

    async def _read_file(self) -> bool:
        """Read the file and return whether it has changed.

        An unusable file changes nothing.
        """
        version = self._source.get_version()
        if version == self._file_version:
            return False
        self._file_version = version
        try:
            servers = await asyncio.to_thread(self._source.load)
        except ConfigError as error:
            log.error("server_file_rejected", error=str(error))
            return False
        self._file_configs = {server.name: server for server in servers}
        log.info("server_file_loaded", servers=len(servers))
        return True

    async def _read_rows(self) -> bool:
        """Read the stored servers and return whether they have changed."""
        before, self._records = self._records, {record.name: record for record in await self._repository.list_servers()}
        return before != self._records

    def _reconcile(self) -> None:
        self._pool.reconcile(self._merge_configs())

    def _merge_configs(self) -> list[ServerConfig]:
        servers = dict(self._file_configs)
        for name, record in self._records.items():
            if record.config is not None and name not in servers:
                servers[name] = record.to_config()
            if record.disabled and name in servers:
                servers[name] = servers[name].model_copy(update={"disabled": True})
        return list(servers.values())


def _validate(name: str, config: JsonObject) -> ServerConfig:
    try:
        return ServerConfig.model_validate({**config, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        path, reason = describe_problem(first, first["loc"])
        raise InvalidRequest(f"{path}: {reason}", param=path) from None
