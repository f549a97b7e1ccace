"""The part of the toolbox that serves resources and prompts."""

import asyncio
from collections.abc import Callable
from functools import partial

from gateway.common.logging import get_logger
from gateway.common.mcp_meta import get_ui_resource
from gateway.domain.errors import McpServerError, NotFound, StorageUnavailable
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import JsonObject, Principal
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.mcp_client.connection.requests import ClientRequest
from gateway.mcp_client.connection_pool import ConnectionPool
from gateway.mcp_client.server_items.requests import (
    find_resource_server,
    list_items,
    request_completion,
    request_prompt,
    request_resource,
    supports_listing,
)
from gateway.mcp_client.server_items.watches import ResourceWatches
from gateway.mcp_client.tool_specs import SpecBuilder
from gateway.ports.tools import ITEM_NAME_FIELDS, HostExchange, ItemKind, ResourceWatch, Toolbox

log = get_logger(__name__)

_UNKNOWN_RESOURCE_CODES = (-32002, -32602)  # of legacy servers, and of modern ones


class ServerItems(Toolbox):
    """Sends requests about resources and prompts to their servers."""

    def __init__(self, pool: ConnectionPool, spec_builder: SpecBuilder, timeout_seconds: float) -> None:
        self._pool = pool
        self._spec_builder = spec_builder
        self._timeout = timeout_seconds
        self._watches = ResourceWatches(pool.get_host_connection, timeout_seconds)

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        """See `Toolbox.list_server_items`. A server that does not answer is left out."""
        connections = [
            connection
            for connection in self._pool
            if supports_listing(self._pool.find_open(connection, principal).server_capabilities, kind)
        ]
        lists = await asyncio.gather(*(self._list_items(connection, kind, principal) for connection in connections))
        return [item for items in lists for item in items]

    async def _list_items(
        self, shared_connection: ServerConnection, kind: ItemKind, principal: Principal
    ) -> list[JsonObject]:
        config = shared_connection.config
        connection = self._pool.get_connection(config.name, principal) or shared_connection
        request = partial(list_items, kind, shared_connection.problems)
        try:
            items = await connection.send_request(request, principal=principal, timeout=self._timeout)
        except ToolCallError as error:
            log.warning("mcp_not_listed", server=config.name, kind=kind, reason=str(error))
            return []
        name_field = ITEM_NAME_FIELDS[kind]
        items = [item for item in items if config.permits_tool(item[name_field])]
        if kind == "prompts":
            names = self._spec_builder.names
            items = [{**item, "prompt": item["name"], "name": names.get_name(config, item["name"])} for item in items]
        return [{"server": config.name, **item} for item in items]

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        """See `Toolbox.read_resource`."""
        name = await self._find_resource_server(uri, principal, server)
        try:
            return await self._request_from_server(name, partial(request_resource, uri, exchange), principal)
        except McpServerError as error:
            if exchange is None and error.refusal and error.refusal["code"] in _UNKNOWN_RESOURCE_CODES:
                raise NotFound(f"No such resource: {uri[:200]!r}.", param="uri") from None
            raise

    async def watch_resource(
        self,
        uri: str,
        principal: Principal,
        on_update: Callable[[str], None],
        server: str | None = None,
        host: HostProfile | None = None,
    ) -> ResourceWatch:
        """See `Toolbox.watch_resource`."""
        name = await self._find_resource_server(uri, principal, server)
        return await self._watches.open_watch(name, uri, principal, on_update, host)

    async def announce_roots_change(self, host_session: str) -> None:
        """See `Toolbox.announce_roots_change`."""
        await self._pool.announce_roots_change(host_session)

    def close_host(self, host_session: str) -> None:
        """See `Toolbox.close_host`."""
        self._pool.close_host(host_session)

    def announces_updates(self, principal: Principal) -> bool:
        """See `Toolbox.announces_updates`."""
        servers = (connection.config.name for connection in self._pool if connection.announces_updates)
        return any(map(principal.can_use_server, servers))

    async def _find_resource_server(self, uri: str, principal: Principal, server: str | None) -> str:
        name = server or await find_resource_server(self.list_server_items, uri, principal)
        connection = self._pool.get_connection(name, principal)
        if connection is not None and not (connection.config.permits_resource(uri) or self._is_page_of_tool(uri, name)):
            raise NotFound(f"No such resource: {uri[:200]!r}.", param="uri")
        return name

    def _is_page_of_tool(self, uri: str, server: str) -> bool:
        """Whether the page belongs to a tool that the entry permits."""
        specs = (spec for spec in self.list_specs() if spec.server == server)
        return any(get_ui_resource((spec.definition or {}).get("_meta")) == uri for spec in specs)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        """See `Toolbox.get_prompt`."""
        prompt = await self._find_prompt(name, principal, server, param="name")
        return await self._request_from_server(
            prompt["server"], partial(request_prompt, prompt["prompt"], arguments, exchange), principal
        )

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        """See `Toolbox.complete_argument`."""
        if ref.get("type") == "ref/prompt":
            prompt = await self._find_prompt(str(ref.get("name")), principal, server, param="ref")
            name, ref = prompt["server"], ref | {"name": prompt["prompt"]}
        else:
            name = await self._find_template_server(ref.get("uri"), principal, server)
        return await self._request_from_server(name, partial(request_completion, ref, argument, context), principal)

    async def _find_prompt(self, name: str, principal: Principal, server: str | None, *, param: str) -> JsonObject:
        for prompt in await self.list_server_items("prompts", principal):
            if prompt["name"] == name and server in (None, prompt["server"]):
                return prompt
        raise NotFound(f"There is no prompt {name[:200]!r}.", param=param)

    async def _find_template_server(self, uri: object, principal: Principal, server: str | None) -> str:
        for template in await self.list_server_items("resource_templates", principal):
            if template["uriTemplate"] == uri and server in (None, template["server"]):
                return template["server"]
        raise NotFound(f"There is no resource template {str(uri)[:200]!r}.", param="ref")

    async def _request_from_server(
        self, server: str, request: ClientRequest[JsonObject], principal: Principal
    ) -> JsonObject:
        connection = self._pool.get_connection(server, principal)
        if connection is None:
            raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        timeout = connection.config.timeout or self._timeout
        try:
            return await connection.send_request(request, principal=principal, timeout=timeout)
        except ToolCallError as error:
            if error.storage_unavailable:
                raise StorageUnavailable(str(error)) from error
            failure = McpServerError(str(error))
            failure.refusal = error.refusal
            raise failure from error
