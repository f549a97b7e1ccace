"""The specs of all servers' tools, with unique names."""

from collections.abc import Iterable
from typing import Any, cast

import msgspec
from mcp.types import Tool

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text, sanitize_value
from gateway.domain.messages import JsonObject, ToolSpec
from gateway.mcp_client.builtin_tools import list_builtin_tools, make_sign_in_tool
from gateway.mcp_client.connection_pool import ConnectionPool
from gateway.mcp_client.definition_check import DefinitionChecker
from gateway.mcp_client.tool_names import make_exposed_name
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import IDEMPOTENT_META

log = get_logger(__name__)

_MAX_TOOLS = 5_000
MAX_DESCRIPTION_LENGTH = 4_000
_MAX_TITLE_LENGTH = 200
_MAX_PROMPT_SCHEMA_BYTES = 64 * 1024
_ANNOTATIONS = {"title": _MAX_TITLE_LENGTH, "description": 1_000, "$comment": 0}
"""Texts of a schema for readers, with their maximum lengths."""
_ANY_ARGUMENTS: JsonObject = {"type": "object"}
_CUT_NOTE = "[The schema of its arguments is too large to be shown.]"


class SpecBuilder:
    """Makes the specs of the tools on offer.

    An unchanged definition keeps its spec, whose schema is cleaned and compiled once.
    """

    def __init__(self, pool: ConnectionPool, checker: DefinitionChecker) -> None:
        self._pool = pool
        self._checker = checker
        self._specs: dict[tuple[str, str, bool], tuple[Tool, ServerConfig, ToolSpec]] = {}

    def build_specs(self) -> tuple[ToolSpec, ...]:
        """The tools on offer now.

        The order is stable, since the model's prompt cache needs equal prompts.
        """
        earlier_specs, self._specs = self._specs, {}
        specs: dict[str, ToolSpec] = {}
        for connection in self._pool:
            offer = self._pool.get_offer(connection)
            if offer is None:
                if connection.needs_sign_in:
                    sign_in = make_sign_in_tool(connection.config)
                    specs.setdefault(sign_in.name, sign_in)
                continue
            withheld_tools = self._checker.get_withheld_tools(offer)
            tools = (tool for tool in offer.tools if tool.name not in withheld_tools)
            self._add_server_tools(specs, connection.config, tools, earlier_specs)
        if len(specs) > _MAX_TOOLS:
            log.warning("too_many_tools", tools=len(specs), offered=_MAX_TOOLS)
        return tuple(specs.values())[:_MAX_TOOLS]

    def _add_server_tools(
        self,
        specs: dict[str, ToolSpec],
        config: ServerConfig,
        tools: Iterable[Tool],
        earlier_specs: dict[tuple[str, str, bool], tuple[Tool, ServerConfig, ToolSpec]],
    ) -> None:
        for tool in sorted(tools, key=lambda tool: tool.name):
            if config.permits_tool(tool.name):
                for distinct in (False, True):
                    key = (config.name, tool.name, distinct)
                    earlier = earlier_specs.get(key)
                    if earlier is None or earlier[0] is not tool or earlier[1] is not config:
                        earlier = (tool, config, make_spec(config, tool, distinct=distinct))
                    self._specs[key] = earlier
                    if earlier[2].name not in specs or distinct:
                        specs[earlier[2].name] = earlier[2]
                        break
        for builtin in list_builtin_tools(config):
            specs.setdefault(builtin.name, builtin)


def make_spec(server: ServerConfig, tool: Tool, *, distinct: bool = False) -> ToolSpec:
    """A server's tool as the gateway offers it.

    Missing annotations get the protocol's cautious defaults.
    """
    hints = tool.annotations
    prefix = server.name if server.prefix is None else server.prefix
    description = clean_text(tool.description or tool.title or tool.name, MAX_DESCRIPTION_LENGTH)
    input_schema = _clean_schema(tool.input_schema)
    if len(msgspec.json.encode(input_schema)) > _MAX_PROMPT_SCHEMA_BYTES:
        input_schema, description = _ANY_ARGUMENTS, f"{description}\n{_CUT_NOTE}"
    return ToolSpec(
        name=make_exposed_name(prefix, server.name, tool.name, distinct),
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
        definition={
            "title": tool.title,
            "description": tool.description or tool.title or tool.name,
            "inputSchema": tool.input_schema,
            "outputSchema": tool.output_schema,
        },
    )


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
