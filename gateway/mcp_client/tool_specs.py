"""The specs of all servers' tools, with unique names."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec
from mcp.types import Tool

from gateway.common.concurrency import LruDict
from gateway.common.logging import get_logger
from gateway.common.mcp_meta import is_for_model
from gateway.common.sanitize import clean_text, sanitize_value
from gateway.domain.messages import JsonObject, ToolSpec
from gateway.mcp_client.builtin_tools import list_builtin_tools, make_sign_in_tool
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection_pool import ConnectionPool, ServerOffer
from gateway.mcp_client.definition_check import DefinitionChecker
from gateway.mcp_client.definitions.model_schema import adapt_for_models
from gateway.mcp_client.tasks.protocol import supports_task
from gateway.mcp_client.tool_names import ExposedNames
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import IDEMPOTENT_META

log = get_logger(__name__)

MAX_TOOLS = 5_000
MAX_DESCRIPTION_LENGTH = 4_000
_MAX_TITLE_LENGTH = 200
_MAX_PROMPT_SCHEMA_BYTES = 64 * 1024
_ANNOTATIONS = {"title": _MAX_TITLE_LENGTH, "description": 1_000, "$comment": 0}
"""Texts of a schema for readers, with their maximum lengths."""
_ANY_ARGUMENTS: JsonObject = {"type": "object", "properties": {}}
_CUT_NOTE = "[The schema of its arguments is too large to be shown.]"


_SpecCache = dict[tuple[str, str, str], tuple[Tool, ServerConfig, ToolSpec]]
_MAX_USERS = 200


class SpecBuilder:
    """Makes the specs of the tools on offer.

    An unchanged definition keeps its spec, whose schema is cleaned and compiled once.
    """

    def __init__(self, pool: ConnectionPool, checker: DefinitionChecker) -> None:
        self._pool = pool
        self._checker = checker
        self._specs: _SpecCache = {}
        self._user_specs: LruDict[str, _SpecCache] = LruDict(_MAX_USERS)
        self._shared_specs: dict[str, list[ToolSpec]] = {}
        """Specs by server, of those with one connection for all users."""
        self._configs: list[ServerConfig] = []
        self._names = ExposedNames(())
        self.surplus: Mapping[str, int] = {}
        """Tools of each server beyond the 5,000 of all servers."""

    @property
    def names(self) -> ExposedNames:
        """The names of the tools and prompts of all configured servers."""
        configs = [connection.config for connection in self._pool]
        if configs != self._configs:
            self._configs, self._names = configs, ExposedNames(configs)
        return self._names

    def build_specs(self) -> tuple[ToolSpec, ...]:
        """The tools on offer now.

        The order is stable, since the model's prompt cache needs equal prompts.
        """
        earlier_specs, self._specs = self._specs, {}
        self._shared_specs = {
            connection.config.name: self._list_server_specs(
                connection, self._pool.get_offer(connection), earlier_specs, self._specs
            )
            for connection in self._pool
        }
        specs = [spec for server_specs in self._shared_specs.values() for spec in server_specs]
        self._report_surplus(specs)
        return tuple(specs[:MAX_TOOLS])

    def build_user_specs(self, user: str) -> tuple[ToolSpec, ...]:
        """The tools that one user is offered now, after `build_specs()`.

        Those of servers with a connection per user are that user's own.
        """
        earlier_specs, new_specs = self._user_specs.get(user) or {}, _SpecCache()
        specs: list[ToolSpec] = []
        for connection in self._pool:
            if connection.config.share == "all":
                specs += self._shared_specs.get(connection.config.name, ())
            else:
                offer = self._pool.get_user_offer(connection, user)
                specs += self._list_server_specs(connection, offer, earlier_specs, new_specs)
        self._user_specs[user] = new_specs
        return tuple(specs[:MAX_TOOLS])

    def _list_server_specs(
        self, connection: ServerConnection, offer: ServerOffer | None, earlier_specs: _SpecCache, new_specs: _SpecCache
    ) -> list[ToolSpec]:
        names, specs = self.names, dict[str, ToolSpec]()
        if offer is None:
            return [make_sign_in_tool(connection.config, names)] if connection.needs_sign_in else []
        withheld_tools = self._checker.get_withheld_tools(offer)
        for tool in offer.tools:
            if tool.name not in withheld_tools and connection.config.permits_tool(tool.name):
                spec = self._make_spec(connection.config, tool, names, specs, earlier_specs, new_specs)
                specs[spec.name] = spec
        for builtin in list_builtin_tools(connection.config, names, specs):
            specs[builtin.name] = builtin
        return list(specs.values())

    def _make_spec(
        self,
        config: ServerConfig,
        tool: Tool,
        names: ExposedNames,
        specs: Mapping[str, ToolSpec],
        earlier_specs: _SpecCache,
        new_specs: _SpecCache,
    ) -> ToolSpec:
        name = names.get_name(config, tool.name)
        if name in specs:
            name = names.get_name(config, tool.name, distinct=True)
        key = (config.name, tool.name, name)
        earlier = earlier_specs.get(key)
        if earlier is None or earlier[0] is not tool or earlier[1] is not config:
            earlier = (tool, config, make_spec(config, tool, name=name))
        former_names = [former for former in names.get_former_names(config, tool.name) if former != name]
        aliases = tuple(former for former in former_names if not self._may_be_of_another(config, former, names))
        spec = earlier[2]
        if (spec.former_names, spec.aliases) != (tuple(former_names), aliases):
            spec = msgspec.structs.replace(spec, former_names=tuple(former_names), aliases=aliases)
        new_specs[key] = (tool, config, spec)
        return spec

    def _may_be_of_another(self, config: ServerConfig, former_name: str, names: ExposedNames) -> bool:
        """Whether another server may have a tool of this former name."""
        for rival in names.list_rivals(config, former_name):
            connection = self._pool.get_shared(rival)
            if connection is None or not connection.knows_tools:
                return True
            if any(former_name in names.get_former_names(connection.config, tool.name) for tool in connection.tools):
                return True
        return False

    def _report_surplus(self, specs: Collection[ToolSpec]) -> None:
        """Tell where servers have more tools together than the gateway offers."""
        surplus = Counter(spec.server for spec in list(specs)[MAX_TOOLS:])
        if surplus:
            log.warning("too_many_tools", tools=len(specs), offered=MAX_TOOLS)
        self.surplus = surplus


def make_spec(server: ServerConfig, tool: Tool, *, name: str) -> ToolSpec:
    """A server's tool as the gateway offers it, under this name.

    Missing annotations get the protocol's cautious defaults.
    """
    hints = tool.annotations
    description = clean_text(tool.description or tool.title or tool.name, MAX_DESCRIPTION_LENGTH)
    input_schema = adapt_for_models(_clean_schema(tool.input_schema))
    if len(msgspec.json.encode(input_schema)) > _MAX_PROMPT_SCHEMA_BYTES:
        input_schema, description = _ANY_ARGUMENTS, f"{description}\n{_CUT_NOTE}"
    return ToolSpec(
        name=name,
        server=server.name,
        tool=tool.name,
        description=description,
        input_schema=input_schema,
        title=tool.title and clean_text(tool.title, _MAX_TITLE_LENGTH),
        output_schema=tool.output_schema and _clean_schema(tool.output_schema),
        read_only=bool(hints and hints.read_only_hint),
        destructive=not (hints and hints.destructive_hint is False),
        idempotent=bool(hints and hints.idempotent_hint),
        open_world=not (hints and hints.open_world_hint is False),
        approval=server.approval,
        deduplicates=server.idempotency or (tool.meta or {}).get(IDEMPOTENT_META) is True,
        for_model=is_for_model(tool.meta),
        runs_as_task=server.runs_as_task(tool.name) or supports_task(tool.execution),
        definition=_dump_definition(tool),
    )


def _dump_definition(tool: Tool) -> JsonObject:
    """The whole definition in MCP's format; the schemas are not copied."""
    definition = tool.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={"title", "icons", "annotations", "execution", "meta"},
    )
    schemas = {"inputSchema": tool.input_schema, "outputSchema": tool.output_schema}
    return {"description": tool.description or tool.title or tool.name, **schemas, **definition}


def _clean_schema(schema: JsonObject) -> JsonObject:
    """A schema for models and people.

    It is sanitized, and its descriptions are cut. It is the same object if nothing changes.
    """
    cleaned = _cut_annotations(sanitize_value(schema))
    return schema if cleaned == schema else cleaned


def _cut_annotations(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut_annotations(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    members: JsonObject = {}
    for name, member in cast("JsonObject", value).items():
        max_length = _ANNOTATIONS.get(name)
        is_text = max_length is not None and isinstance(member, str)
        members[name] = member[:max_length] if is_text else _cut_annotations(member)
    return members
